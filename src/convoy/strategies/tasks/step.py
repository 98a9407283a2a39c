"""``Sequential(inner="tasks")`` bound to a model: each mini-batch as a task graph on a pool of workers."""

from __future__ import annotations

import time
import weakref
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import nn
from torch.optim import Optimizer

from convoy.engines.engine import Disturb, Engine, EngineOptions
from convoy.engines.inline import InlineEngine
from convoy.engines.interrupts import uninterrupted
from convoy.engines.pool import POOL, PoolEngine
from convoy.engines.program import Program, Store
from convoy.errors import InternalError, OptionError
from convoy.events.event import Event, Sink
from convoy.graph.capture import capture
from convoy.graph.graph import Graph
from convoy.schedule.action import Action
from convoy.schedule.schedule import Schedule
from convoy.strategies.base import Loss, Settings, StepResult
from convoy.strategies.batch import arguments, batch_size, channels_last, prepare_model, to_device
from convoy.strategies.pipelined.optimizer import check, extent, mark_stepped, snapshot
from convoy.strategies.pipelined.step import check_settings
from convoy.strategies.sequential import SequentialResult
from convoy.strategies.tasks.build import Bound, Built, build
from convoy.strategies.tasks.ops import Frame
from convoy.strategies.tasks.plan import TaskPlan

RANK_AFTER = frozenset((1, 4, 16, 64))
"""Mini-batches after which priorities are computed anew from what the actions took."""


class _Current:
    """The program of the mini-batch that is on its way: one engine serves batches of any size."""

    program: Program

    def run(self, action: Action, store: Store) -> int:
        return self.program.run(action, store)


class TaskStep:
    """Implements ``Step``. Nothing is in flight between two mini-batches.

    ``engine``: "pool", "inline" (one thread, program order: the oracle) or None for what suits the threads. ``tiles``:
    into how many a mini-batch is cut, None for what suits the model.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: Optimizer,
        settings: Settings,
        sink: Sink | None,
        *,
        engine: str | None = None,
        tiles: int | None = None,
        disturb: Disturb | None = None,
        keep_schedule: bool = False,
    ) -> None:
        check(optimizer)
        check_settings(settings)
        if torch.device(settings.device).type != "cpu":
            raise OptionError(
                f"inner='tasks' shares a step among the cores of a CPU, but device is {settings.device!r}",
                hint="leave inner out on an accelerator",
            )
        self._model, self._loss, self._optimizer = model, loss, optimizer
        self._settings, self._sink, self._disturb = settings, sink, disturb
        self._kind, self._tiles = engine, tiles
        self.schedule: Schedule | None = Schedule() if keep_schedule else None
        self._graph: Graph | None = None
        self._engine: Engine | None = None
        self._built: dict[int, Built] = {}  # tiles of the batch → what runs it
        self._plan: TaskPlan | None = None
        self._form: tuple[Any, ...] = ()
        self._store = Store()
        self._current = _Current()
        self._batch = 0
        self._closed = False

    def __call__(self, x: Any, y: Any) -> SequentialResult:
        if self._closed:
            raise InternalError("the step was closed", hint="bind the strategy again")
        x, y = to_device(x, self._settings.device), to_device(y, self._settings.device)
        x = channels_last(x) if self._settings.channels_last else x
        built = self._prepare(x)
        assert self._engine is not None and self._graph is not None
        frame = Frame(self._batch, [], self._graph.bind(*arguments(x)), y, snapshot(self._optimizer), batch_size(x))
        self._optimizer.zero_grad(set_to_none=True)
        with uninterrupted():
            self._current.program = built.program
            built.program.begin(frame)
            recurring = built.program.recurring
            entries = recurring.at(frame.batch, {name: self._store.version(name) for name in recurring.advances})
            if self.schedule is not None:
                self.schedule.extend(entries)
            try:
                self._engine.submit(entries)
                self._engine.settle()
            finally:
                built.program.end(frame.batch)
            self._batch += 1
            built.runs += 1
            mark_stepped(self._optimizer)
        if built.runs in RANK_AFTER:
            recurring.rank()
        assert frame.loss is not None
        return SequentialResult(frame.batch, frame.loss, frame.output, y)

    # --- inside --------------------------------------------------------------------------------------------

    def _prepare(self, x: Any) -> Built:
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
        tiles = self._bound.tiles_for(batch_size(x), self._tiles)
        if tiles not in self._built:
            self._built[tiles] = build(self._bound, tiles)
            if self._engine is None:
                self._start(self._built[tiles])
        return self._built[tiles]

    @property
    def workers(self) -> int:
        return self._settings.threads or torch.get_num_threads()

    def _start(self, built: Built) -> None:
        """The engine, and what the plan says, for a model in its present mode."""
        self._store = Store()
        lanes = {POOL: 1} if self._inline else {f"worker {i + 1}": 1 for i in range(self.workers)}
        options = EngineOptions(
            lanes=lanes,
            sink=self._sink,
            clock=time.perf_counter,
            watchdog_seconds=self._settings.watchdog_seconds,
            disturb=self._disturb,
            versions={name: self._batch for name in built.program.recurring.advances if name[0] == "W"},
        )
        kind = InlineEngine if self._inline else PoolEngine
        self._engine = kind(self._current, self._store, options)
        weakref.finalize(self, self._engine.abandon)  # a step that was dropped without close() leaves no threads
        if self._plan is None and self._sink is not None:
            self._sink(Event("plan", "sequential", data=built.plan.to_dict()))
        self._plan = built.plan

    @property
    def _inline(self) -> bool:
        return self._kind == "inline" or (self._kind is None and self.workers == 1)

    def _stop(self) -> None:
        self._built.clear()
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def begin_epoch(self, epoch: int, epochs: int, batches: int | None = None) -> None:
        """Epochs make no difference."""

    def end_epoch(self, *, validation_accuracy: float | None = None, validation_loss: float | None = None) -> None:
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

    def plan(self) -> TaskPlan | None:
        return self._plan

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
