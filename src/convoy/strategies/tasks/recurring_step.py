"""What steps have in common whose mini-batches are the same actions every time, and leave nothing in flight."""

from __future__ import annotations

import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import nn
from torch.optim import Optimizer

from convoy.engines.engine import Disturb, Engine, EngineOptions
from convoy.engines.interrupts import uninterrupted
from convoy.engines.program import CurrentProgram, Program, Store
from convoy.errors import InternalError
from convoy.events.event import Event, Sink
from convoy.graph.capture import capture
from convoy.graph.graph import Graph
from convoy.schedule.plan import Plan
from convoy.schedule.schedule import Schedule
from convoy.strategies.base import Loss, Settings, StepResult
from convoy.strategies.batch import arguments, batch_size, channels_last, prepare_model, to_device
from convoy.strategies.pipelined.optimizer import check, extent, mark_stepped, snapshot
from convoy.strategies.pipelined.step import check_settings
from convoy.strategies.sequential import SequentialResult
from convoy.strategies.tasks.build import Bound, Built
from convoy.strategies.tasks.ops import Frame

RANK_AFTER = frozenset((1, 4, 16, 64))
"""Mini-batches after which priorities are computed anew from what the actions took."""


class RecurringStep(ABC):
    """Implements ``Step``. A subclass says what is built for a batch, and what runs it."""

    strategy: ClassVar[str]

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: Optimizer,
        settings: Settings,
        sink: Sink | None,
        *,
        disturb: Disturb | None = None,
        keep_schedule: bool = False,
    ) -> None:
        check(optimizer)
        check_settings(settings)
        self._model, self._loss, self._optimizer = model, loss, optimizer
        self._settings, self._sink, self._disturb = settings, sink, disturb
        self.schedule: Schedule | None = Schedule() if keep_schedule else None
        self._graph: Graph | None = None
        self._engine: Engine | None = None
        self._built: dict[int, Built] = {}  # tiles of the batch → what runs it
        self._plan: Plan | None = None
        self._form: tuple[Any, ...] = ()
        self._versions: dict[str, int] = {}  # of the states, as the next mini-batch finds them
        self._current = CurrentProgram()
        self._batch = 0
        self._closed = False

    # --- what a subclass says ------------------------------------------------------------------------------

    @property
    @abstractmethod
    def workers(self) -> int:
        """Threads that share a mini-batch."""

    @property
    @abstractmethod
    def _lanes(self) -> Mapping[str, int]:
        """Lane → its intra-op threads."""

    @abstractmethod
    def _tiles_for(self, samples: int) -> int:
        """Into how many tiles a mini-batch is cut."""

    @abstractmethod
    def _build(self, tiles: int, x: Any, y: Any) -> Built:
        """What runs mini-batches of so many tiles. ``x`` and ``y``: the first of them."""

    @abstractmethod
    def _make_engine(self, program: Program, store: Store, options: EngineOptions) -> Engine: ...

    # --- Step ----------------------------------------------------------------------------------------------

    def __call__(self, x: Any, y: Any) -> SequentialResult:
        if self._closed:
            raise InternalError("the step was closed", hint="bind the strategy again")
        x, y = to_device(x, self._settings.device), to_device(y, self._settings.device)
        x = channels_last(x) if self._settings.channels_last else x
        built = self._prepare(x, y)
        assert self._engine is not None and self._graph is not None
        frame = Frame(self._batch, [], self._graph.bind(*arguments(x)), y, snapshot(self._optimizer), batch_size(x))
        self._optimizer.zero_grad(set_to_none=True)
        with uninterrupted():
            self._current.program = built.program
            built.program.begin(frame)
            recurring = built.program.recurring
            entries = recurring.at(frame.batch, self._versions)
            if self.schedule is not None:
                self.schedule.extend(entries)
            try:
                self._engine.submit(entries)
                self._engine.settle()
            finally:
                built.program.end(frame.batch)
            for name, added in recurring.advances.items():
                self._versions[name] = self._versions.get(name, 0) + added
            self._batch += 1
            built.runs += 1
            mark_stepped(self._optimizer)
        if built.runs in RANK_AFTER:
            recurring.rank()
        assert frame.loss is not None
        return SequentialResult(frame.batch, frame.loss, frame.output, y)

    def begin_epoch(self, epoch: int, epochs: int, batches: int | None = None) -> None:  # noqa: B027
        """Epochs make no difference."""

    def end_epoch(  # noqa: B027
        self, *, validation_accuracy: float | None = None, validation_loss: float | None = None
    ) -> None:
        """Epochs make no difference."""

    def drain(self) -> list[StepResult]:
        """Nothing is ever in flight."""
        return []

    def close(self) -> None:
        self._closed = True
        self._stop()

    def state(self) -> Mapping[str, Any]:
        return {"batch": self._batch, "version": self._batch}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._batch = int(state["batch"])

    def plan(self) -> Plan | None:
        return self._plan

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- inside --------------------------------------------------------------------------------------------

    def _prepare(self, x: Any, y: Any) -> Built:
        """What runs a batch of this size, with the model in its present mode."""
        if self._graph is None:
            prepare_model(self._model, self._optimizer, self._settings.device, self._settings.channels_last)
            self._graph = capture(self._model, *arguments(x))
        form = (
            tuple(module.training for module in self._model.modules()),
            tuple(p.requires_grad for p in self._model.parameters()),
            extent(self._optimizer),
        )
        if form != self._form:
            self._stop()
            self._form = form
            self._bound = Bound.of(self._graph, self._model, self._loss, self._optimizer, self._settings, self.workers)
        tiles = self._tiles_for(batch_size(x))
        if tiles not in self._built:
            self._built[tiles] = self._build(tiles, x, y)
            if self._engine is None:
                self._start(self._built[tiles])
        return self._built[tiles]

    def _start(self, built: Built) -> None:
        """The engine, and what the plan says, for a model in its present mode."""
        self._versions = {name: self._batch for name in built.program.recurring.advances if name[0] == "W"}
        options = EngineOptions(
            lanes=self._lanes,
            sink=self._sink,
            clock=time.perf_counter,
            watchdog_seconds=self._settings.watchdog_seconds,
            disturb=self._disturb,
            versions=self._versions.copy(),
        )
        self._engine = self._make_engine(self._current, Store(), options)
        weakref.finalize(self, self._engine.abandon)  # a step that was dropped without close() leaves no threads
        if self._plan is None and self._sink is not None:
            self._sink(Event("plan", self.strategy, data=built.plan.to_dict()))
        self._plan = built.plan

    def _stop(self) -> None:
        self._built.clear()
        if self._engine is not None:
            self._engine.close()
            self._engine = None


def allowed_threads(settings: Settings) -> int:
    """Intra-op threads that may be used in all."""
    return settings.threads or torch.get_num_threads()
