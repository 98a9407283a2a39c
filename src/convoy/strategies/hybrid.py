"""Two strategies one after the other on the same weights: pipelined first and sequential at the end, as published
(Zhang and Abdelrahman 2021), or a sequential start for a pipeline (PipeMare's T3, Yang et al. 2021).

Weights, BatchNorm estimates and optimizer state are the user's own objects and stay where they are. The first strategy
is drained before the switch; the second goes on with its count of mini-batches, so that random layers draw on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import nn

from convoy.drawing.table import value_tables
from convoy.errors import InternalError, OptionError
from convoy.events.event import Event, EventKind, Sink
from convoy.events.warn import tell
from convoy.strategies.base import DataStrategy, Loss, Settings, Step, StepResult, Strategy
from convoy.strategies.pipelined.step import PipelinedStep
from convoy.strategies.switching import Switching, SwitchRule


@dataclass(frozen=True)
class Hybrid(Strategy):
    """``first`` until the switch, ``then`` from there on; both orders.

    ``switch``: 5 (after 5 epochs), 0.5 (half of the run; at the mini-batch where the loader has a length, else at an
    epoch's beginning), "stall" or "stall:N" (validation has not improved for N epochs, 3 when nothing is said) or
    "batch:N" (before mini-batch N of the run, counted from 0).

    The Trainer says when epochs begin and end. In an own loop call ``step.begin_epoch(epoch, epochs, batches)`` before
    each epoch and, for a stall, ``step.end_epoch(validation_accuracy=...)`` after it; "batch:N" needs neither.

    Raises OptionError for a switch that makes no sense, and for a part that is a hybrid itself or
    shares out samples itself (bilayered).
    """

    name: ClassVar[str] = "hybrid"

    first: Strategy
    then: Strategy
    switch: int | float | str

    def __post_init__(self) -> None:
        for field in ("first", "then"):
            part = getattr(self, field)
            if not isinstance(part, Strategy):
                raise OptionError(
                    f"{field} is {part!r}, which is no strategy",
                    hint="for example Hybrid(Pipelined(stages=2), Sequential(), switch=0.5)",
                )
            if isinstance(part, DataStrategy):
                raise OptionError(
                    f"a hybrid cannot hold {part.name}, which decides itself which node trains which samples",
                    hint=f"use {part.name} alone, or a hybrid of two others",
                )
            if isinstance(part, Hybrid):
                raise OptionError(f"{field} is a hybrid itself", hint="a hybrid switches once, between two others")
        if self.first == self.then:
            raise OptionError("first and then are the same strategy", hint="use it alone")
        SwitchRule.parse(self.switch)

    @property
    def needs_validation(self) -> bool:
        stall = SwitchRule.parse(self.switch).kind == "stall"
        return stall or self.first.needs_validation or self.then.needs_validation

    def bind(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        *,
        settings: Settings | None = None,
        sink: Sink | None = None,
    ) -> HybridStep:
        # Both at once, so that what the second one refuses is said before the first one trains.
        parts = [part.bind(model, loss, optimizer, settings=settings, sink=sink) for part in (self.first, self.then)]
        return HybridStep(self, parts[0], parts[1], sink)


@dataclass(frozen=True, slots=True)
class HybridPlan:
    """The plans of the two strategies, once the first mini-batch was seen; None for one that is made, or was made in a
    run before this one, when it begins to train. ``names`` of the strategies; ``switched``: whether the second one
    trains."""

    first: Any
    then: Any
    names: tuple[str, str]
    switched: bool

    def _repr_html_(self) -> str:
        return f"<div>{value_tables(self.to_dict())}</div>"

    def to_dict(self) -> dict[str, Any]:
        return {"strategy": Hybrid.name, "first": _values(self.first), "then": _values(self.then)}

    def table(self) -> str:
        """The plan of the strategy that trains now and, before the switch, that of the one that follows."""
        if self.switched:
            return _table(self.first if self.then is None else self.then)
        then = f" {self.names[1]}" if self.then is None else f"\n{_table(self.then)}"
        return f"until the switch:\n{_table(self.first)}\n\nfrom the switch on:{then}"


def _table(plan: Any) -> str:
    table = getattr(plan, "table", None)
    return str(plan if table is None else table())


def _values(plan: Any) -> Any:
    return plan.to_dict() if hasattr(plan, "to_dict") else plan


class HybridStep:
    """Implements ``Step`` with the step of the strategy whose turn it is."""

    def __init__(self, strategy: Hybrid, first: Step, then: Step, sink: Sink | None) -> None:
        self._strategy, self._sink = strategy, sink
        self._step = first
        self._then: Step | None = then  # None after the switch
        self._foreseen = False  # whether the second one saw a mini-batch before its turn
        self._switching = Switching(SwitchRule.parse(strategy.switch))
        self._batch = 0
        self._results: deque[StepResult] = deque()  # that came out, and were not handed back yet
        self._first_plan: Any = None  # after the switch
        self._plan: HybridPlan | None = None
        self._measured: Any = None  # of the first strategy, after the switch

    def __call__(self, x: Any, y: Any) -> StepResult | None:
        if self._then is not None:
            if self._switching.needs_epochs:
                raise OptionError(
                    f"switch={self._strategy.switch!r} depends on epochs, and no epoch was begun",
                    hint="call step.begin_epoch(epoch, epochs, batches) before each epoch, or use switch='batch:N'",
                )
            if self._switching.due(self._batch):
                self._switch(self._then)
            elif not self._foreseen:
                self._foresee(self._then, x, y)
        result = self._step(x, y)
        self._batch += 1
        if result is not None:
            self._results.append(result)
        return self._results.popleft() if self._results else None

    def _foresee(self, then: Step, x: Any, y: Any) -> None:
        """Have the second one planned before the first one trains, so that what it refuses is said now."""
        foresee = getattr(then, "foresee", None)
        if foresee is not None:
            foresee(x, y)
        self._foreseen = True

    def _switch(self, then: Step) -> None:
        """Drain the first strategy and hand over to the second."""
        if isinstance(self._step, PipelinedStep):
            self._step.stay()
        self._results.extend(self._step.drain())
        self._hand_over(then)
        then.restore({"batch": self._batch, "version": self._batch})
        made = {"from": self._strategy.first.name, "to": self._strategy.then.name, **self._switching.reason()}
        self._report("decision", {"cause": self._switching.rule.cause, **made})

    def _hand_over(self, then: Step) -> None:
        """The first step goes, with its workers and buffers; only its plan is kept."""
        self._first_plan, self._measured = self._step.plan(), self.measured()
        self._step.close()
        self._step, self._then = then, None

    def begin_epoch(self, epoch: int, epochs: int, batches: int | None = None) -> None:
        """Epoch ``epoch`` (from 0) of ``epochs`` begins, with ``batches`` mini-batches where that is known."""
        self._step.begin_epoch(epoch, epochs, batches)
        if self._then is not None:
            self._then.begin_epoch(epoch, epochs, batches)
            self._warn(self._switching.begin_epoch(self._batch, epoch, epochs, batches))

    def end_epoch(self, *, validation_accuracy: float | None = None, validation_loss: float | None = None) -> None:
        """The epoch is over. Raises OptionError where the switch waits for a stall and there was no validation."""
        self._step.end_epoch(validation_accuracy=validation_accuracy, validation_loss=validation_loss)
        if self._then is not None:
            self._warn(self._switching.end_epoch(validation_accuracy, validation_loss))

    def recut(self, cuts: Sequence[str]) -> None:
        """Cut the pipeline that trains now anew, right after a drain."""
        if not isinstance(self._step, PipelinedStep):
            raise InternalError("what trains now is no pipeline and cannot be cut anew")
        self._step.recut(cuts)

    def drain(self) -> list[StepResult]:
        drained = [*self._results, *self._step.drain()]
        self._results.clear()
        return drained

    def close(self) -> None:
        self._step.close()
        if self._then is not None:
            self._then.close()

    def state(self) -> Mapping[str, Any]:
        if self._results:
            raise InternalError("the state of a hybrid is only defined after a drain")
        return {
            "batch": self._batch,
            "version": self._batch,
            "switched": self._then is None,
            "switching": self._switching.state(),
            "step": dict(self._step.state()),
            "then": None if self._then is None else dict(self._then.state()),  # what was measured stays decided
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._batch = int(state["batch"])
        if "step" not in state:  # only so many mini-batches were trained before, by whom does not matter
            self._step.restore(state)
            return
        if state["switched"] and self._then is not None:
            self._hand_over(self._then)
        elif self._then is not None and state.get("then") is not None:
            self._then.restore(state["then"])
        self._switching.restore(state["switching"])
        self._step.restore(state["step"])

    def plan(self) -> HybridPlan | None:
        """None until the first mini-batch; the same object until something in it changes."""
        own, switched = self._step.plan(), self._then is None
        first, then = (self._first_plan, own) if self._then is None else (own, self._then.plan())
        if own is None and (first is None or not switched):
            return None
        before = self._plan
        if before is None or before.first is not first or before.then is not then or before.switched != switched:
            names = (self._strategy.first.name, self._strategy.then.name)
            self._plan = HybridPlan(first, then, names, switched)
        return self._plan

    @property
    def suspects(self) -> str | None:
        """Of the part that trains now."""
        part = self._strategy.first if self._then is not None else self._strategy.then
        return getattr(self._step, "suspects", part.suspects)

    def measured(self) -> Any:
        """The pipeline's plan with measured times, also after the switch; None before there are enough."""
        of_this = getattr(self._step, "measured", None)
        found = None if of_this is None else of_this()
        return self._measured if found is None else found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        try:
            if kind is None or issubclass(kind, KeyboardInterrupt):
                self.drain()
        finally:
            self.close()

    def _warn(self, message: str | None) -> None:
        if message is not None:
            self._report("warning", {"message": message})

    def _report(self, kind: EventKind, data: Mapping[str, Any]) -> None:
        tell(self._sink, Event(kind, "switch", batch=self._batch, data=data))
