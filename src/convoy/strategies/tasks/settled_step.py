"""What steps have in common that leave nothing in flight between two mini-batches."""

from __future__ import annotations

import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, Protocol, Self, TypeAlias

from torch import nn
from torch.optim import Optimizer

from convoy.engines.driver import callers_threads
from convoy.engines.engine import Disturb, Engine, EngineOptions
from convoy.engines.interrupts import uninterrupted
from convoy.engines.program import CurrentProgram, Program, Store
from convoy.errors import InternalError
from convoy.events.event import Sink
from convoy.graph.capture import capture
from convoy.graph.graph import Graph
from convoy.graph.timed_pass import intra_op_threads
from convoy.schedule.plan import Plan
from convoy.schedule.schedule import Schedule
from convoy.strategies.base import Loss, Settings, StepResult
from convoy.strategies.batch import arguments, channels_last, prepare_model, to_device
from convoy.strategies.pipelined.optimizer import check, extent, mark_stepped
from convoy.strategies.pipelined.step import check_settings
from convoy.strategies.tasks.ops import Frame
from convoy.strategies.tasks.program import TaskProgram

RANK_AFTER = frozenset((1, 4, 16, 64))
"""Mini-batches after which priorities are computed anew from what the actions took."""

MakeEngine: TypeAlias = Callable[[Program, Store, EngineOptions], Engine]


class Recurring(Protocol):
    """What runs mini-batches of one sort. ``runs``: how many it ran."""

    program: TaskProgram
    runs: int


class SettledStep(ABC):
    """What of ``Step`` needs no knowledge of what a mini-batch consists of."""

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
        self._versions: dict[str, int] = {}  # of the states, as the next mini-batch finds them
        self._form: tuple[Any, ...] = ()
        self._current = CurrentProgram()
        self._batch = 0
        self._closed = False

    @abstractmethod
    def __call__(self, x: Any, y: Any) -> StepResult: ...

    @abstractmethod
    def plan(self) -> Plan | None: ...

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- for subclasses ------------------------------------------------------------------------------------

    def _batch_here(self, x: Any, y: Any) -> tuple[Any, Any]:
        """``x`` and ``y`` on the device and in the memory format of the run."""
        if self._closed:
            raise InternalError("the step was closed", hint="bind the strategy again")
        x, y = to_device(x, self._settings.device), to_device(y, self._settings.device)
        if not self._settings.channels_last:
            return x, y
        beside = self._engine is not None and self._engine.beside
        with intra_op_threads(1) if beside else nullcontext():  # what follows would share the cores with its team
            return channels_last(x), y

    def _captured(self, x: Any) -> Graph:
        """The model's graph, made from the first batch."""
        if self._graph is None:
            prepare_model(self._model, self._optimizer, self._settings.device, self._settings.channels_last)
            self._graph = capture(self._model, *arguments(x))
        return self._graph

    def _has_changed(self) -> bool:
        """Whether the model's mode, or what is trained of it, is another than when this was last asked."""
        form = (
            tuple(module.training for module in self._model.modules()),
            tuple(p.requires_grad for p in self._model.parameters()),
            extent(self._optimizer),
        )
        changed, self._form = form != self._form, form
        return changed

    def _open(self, make: MakeEngine, lanes: Mapping[str, int], program: TaskProgram) -> None:
        """An engine with these ``lanes``, for programs that update the same states as ``program``."""
        self._versions = {name: self._batch for name in program.recurring.advances if name[0] == "W"}
        options = EngineOptions(
            lanes=lanes,
            sink=self._sink,
            clock=time.perf_counter,
            watchdog_seconds=self._settings.watchdog_seconds,
            disturb=self._disturb,
            versions=self._versions.copy(),
        )
        self._engine = make(self._current, Store(), options)
        weakref.finalize(self, self._engine.abandon)  # a step that was dropped without close() leaves no threads

    def _carry_out(self, built: Recurring, frame: Frame) -> None:
        """One mini-batch from beginning to end; Ctrl-C waits for it."""
        assert self._engine is not None
        recurring = built.program.recurring
        self._optimizer.zero_grad(set_to_none=True)
        with uninterrupted():
            self._current.program = built.program
            built.program.begin(frame)
            entries = recurring.at(frame.batch, {name: self._versions.get(name, 0) for name in recurring.advances})
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

    def _stop(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None


def allowed_threads(settings: Settings) -> int:
    """Intra-op threads that may be used in all."""
    return settings.threads or callers_threads()
