"""``Speculative`` bound to a model: each mini-batch exact, probing or speculating, on two engines."""

from __future__ import annotations

import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from convoy.engines.engine import Disturb, Engine, EngineOptions
from convoy.engines.inline import InlineEngine
from convoy.engines.interrupts import uninterrupted
from convoy.engines.pool import POOL, PoolEngine
from convoy.engines.program import CurrentProgram, Store
from convoy.errors import CheckpointError, DataError, InternalError, OptionError
from convoy.events.event import Event, EventKind, Sink
from convoy.graph.capture import capture
from convoy.graph.graph import Graph
from convoy.schedule.schedule import Schedule
from convoy.strategies.base import Loss, Settings, StepResult
from convoy.strategies.batch import arguments, batch_size, channels_last, prepare_model, to_device
from convoy.strategies.pipelined.optimizer import check, extent, mark_stepped, snapshot
from convoy.strategies.pipelined.step import check_settings
from convoy.strategies.speculative.acceptance import Selection, cosine
from convoy.strategies.speculative.build import ENGINES, Built, Programs, Remembered, describe, prepare
from convoy.strategies.speculative.controller import Controller, Mode, Rule
from convoy.strategies.speculative.frame import NotedFrame
from convoy.strategies.speculative.plan import SpeculativePlan
from convoy.strategies.speculative.strategy import Speculative
from convoy.strategies.speculative.timing import TimeSaved
from convoy.strategies.tasks.step import RANK_AFTER


@dataclass(frozen=True, slots=True)
class SpeculativeResult:
    """A finished mini-batch. ``measures``: ``mode``, and where it was compared ``accepted`` (share of the samples),
    ``agreement`` (cosine of speculated and exact gradients, smoothed over probes) and ``time_saved`` (share of the
    time of an exact mini-batch on these engines)."""

    batch: int
    loss: Tensor
    output: Any
    target: Any
    measures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        return True


class SpeculativeStep:
    """Implements ``Step``. Nothing is in flight between two mini-batches.

    ``disturb`` and ``keep_schedule`` are for tests.
    """

    def __init__(
        self,
        strategy: Speculative,
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
        if torch.device(settings.device).type != "cpu":
            raise OptionError(
                f"speculative training shares a step among cores of a CPU, but device is {settings.device!r}",
                hint="choose another strategy on an accelerator",
            )
        self._strategy, self._model, self._loss, self._optimizer = strategy, model, loss, optimizer
        self._settings, self._sink, self._disturb = settings, sink, disturb
        self.schedule: Schedule | None = Schedule() if keep_schedule else None
        self._controller = Controller(Rule.parse(strategy.controller), strategy.warmup)
        self._time = TimeSaved()
        self._graph: Graph | None = None
        self._engine: Engine | None = None
        self._programs: Programs | None = None
        self._remembered: Remembered | None = None
        self._restored: Mapping[str, Any] | None = None
        self._plan: SpeculativePlan | None = None
        self._form: tuple[Any, ...] = ()
        self._store = Store()
        self._current = CurrentProgram()
        self._batch = 0
        self._closed = False
        self._foreseen = False  # whether the run's length was looked at

    def __call__(self, x: Any, y: Any) -> SpeculativeResult:
        if self._closed:
            raise InternalError("the step was closed", hint="bind the strategy again")
        x, y = to_device(x, "cpu"), to_device(y, "cpu")
        check_labels(y, batch_size(x))
        x = channels_last(x) if self._settings.channels_last else x
        programs = self._prepare(x)
        _check_range(y, programs.prepared.classes)
        assert self._engine is not None and self._graph is not None
        mode = self._controller.mode(self._batch)
        built = programs.of(mode)
        inputs = self._graph.bind(*arguments(x))
        frame = NotedFrame(self._batch, [], inputs, y, snapshot(self._optimizer), batch_size(x))
        self._optimizer.zero_grad(set_to_none=True)
        began = time.perf_counter()
        with uninterrupted():
            self._carry_out(built, frame)
            self._batch += 1
            mark_stepped(self._optimizer)
        self._time.add(mode, time.perf_counter() - began, batch_size(x))
        assert frame.loss is not None
        return SpeculativeResult(frame.batch, frame.loss, frame.output, y, self._after(mode, frame))

    def _carry_out(self, built: Built, frame: NotedFrame) -> None:
        assert self._engine is not None
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
        built.runs += 1
        if built.runs in RANK_AFTER:
            recurring.rank()

    def _after(self, mode: Mode, frame: NotedFrame) -> dict[str, Any]:
        """Decisions made from the mini-batch, and what is told of it."""
        measures: dict[str, Any] = {"mode": mode}
        selection: Selection | None = frame.notes.get("selection")
        if selection is not None:
            found = {"accepted": selection.accepted, "distance": selection.distance}
            measures.update(found)
            if "signal" in frame.notes:
                measures["signal_agreement"] = cosine([frame.notes["signal"]])
            data = {"samples": selection.samples, "set": selection.code, **found}
            if mode == "probe":
                parts = [frame.notes[key] for key in sorted(frame.notes) if key.startswith("agreement.")]
                self._probed(frame.batch, {**data, "agreement": cosine(parts)})
            else:
                self._decide("accept", frame.batch, data)
        if self._controller.agreement is not None:
            measures["agreement"] = self._controller.agreement
        saved = self._time.saved()
        if saved is not None:
            measures["time_saved"] = saved
        return measures

    def _probed(self, batch: int, data: Mapping[str, Any]) -> None:
        self._decide("probe", batch, data)
        controller = self._controller
        if controller.observe(data["agreement"], data["accepted"]):
            told = {"on": controller.on, "agreement": controller.agreement, "accepted": controller.accepted}
            self._decide("speculation", batch, told)
        idle = controller.idle()
        if idle is not None:
            self._report("warning", "speculation", batch, {"message": idle})

    def _decide(self, name: str, batch: int, data: Mapping[str, Any]) -> None:
        self._report("decision", name, batch, {"cause": "data", **data})

    def _report(self, kind: EventKind, name: str, batch: int, data: Mapping[str, Any]) -> None:
        if self._sink is not None:
            self._sink(Event(kind, name, batch=batch, data=data))

    # --- preparing -----------------------------------------------------------------------------------------

    def _prepare(self, x: Any) -> Programs:
        """The programs for the model in its present mode."""
        if self._graph is None:
            prepare_model(self._model, self._optimizer, "cpu", self._settings.channels_last)
            self._graph = capture(self._model, *arguments(x))
        form = (
            tuple(module.training for module in self._model.modules()),
            tuple(p.requires_grad for p in self._model.parameters()),
            extent(self._optimizer),
        )
        if form != self._form or self._programs is None:
            self._form = form
            self._stop()
            prepared = prepare(
                self._strategy, self._graph, self._model, self._loss, self._optimizer, self._settings,
                self._remembered, self._graph.bind(*arguments(x)),
            )  # fmt: skip
            self._remembered, self._programs = prepared.remembered, Programs(prepared)
            if self._restored is not None:
                _restore_memory(self._remembered, self._restored)
                self._restored = None
            self._start(self._programs, batch_size(x))
        return self._programs

    def _start(self, programs: Programs, samples: int) -> None:
        """The engines, and the plan, which is told once."""
        self._store = Store()
        threads = self._settings.threads or torch.get_num_threads()
        each = max(1, threads // ENGINES)
        inline = self._strategy.engine == "inline" or (self._strategy.engine == "auto" and threads == 1)
        advances = programs.of("exact").program.recurring.advances
        options = EngineOptions(
            lanes={POOL: each} if inline else {f"engine {i + 1}": each for i in range(ENGINES)},
            sink=self._sink,
            clock=time.perf_counter,
            watchdog_seconds=self._settings.watchdog_seconds,
            disturb=self._disturb,
            versions={name: self._batch for name in advances if name[0] == "W"},
        )
        self._engine = (InlineEngine if inline else PoolEngine)(self._current, self._store, options)
        weakref.finalize(self, self._engine.abandon)  # a step that was dropped without close() leaves no threads
        if self._plan is None:
            self._plan = describe(self._strategy, programs.prepared, 1 if inline else ENGINES, each, samples)
            self._report("plan", Speculative.name, -1, self._plan.to_dict())

    def _stop(self) -> None:
        self._programs = None
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    # --- the rest of ``Step`` ------------------------------------------------------------------------------

    def begin_epoch(self, epoch: int, epochs: int, batches: int | None = None) -> None:
        """Epochs make no difference; a run that they leave too short to speculate is warned of, once."""
        total = self._settings.total_steps
        if total is None and batches is not None:
            total = epochs * batches
        if total is None or self._foreseen:
            return
        self._foreseen = True
        warning = self._controller.too_short(total)
        if warning is not None:
            self._report("warning", "speculation", self._batch, {"message": warning})

    def end_epoch(self, *, validation_accuracy: float | None = None, validation_loss: float | None = None) -> None:
        """Epochs make no difference."""

    def drain(self) -> list[StepResult]:
        """Nothing is ever in flight."""
        return []

    def close(self) -> None:
        self._closed = True
        self._stop()

    def state(self) -> Mapping[str, Any]:
        remembered = self._restored if self._remembered is None else self._remembered.state()
        return {
            "batch": self._batch,
            "version": self._batch,
            "controller": self._controller.state(),
            "remembered": remembered,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._batch = int(state["batch"])
        if "controller" in state:
            self._controller.restore(state["controller"])
            self._restored = state["remembered"]

    def plan(self) -> SpeculativePlan | None:
        return self._plan

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def check_labels(y: Any, samples: int) -> None:
    """Raise DataError for targets that are not one label a sample."""
    if not isinstance(y, Tensor) or y.dtype != torch.long or y.shape != (samples,):
        found = f"{y.dtype} of shape {tuple(y.shape)}" if isinstance(y, Tensor) else f"a {type(y).__name__}"
        raise DataError(
            f"speculation remembers by label and needs {samples} whole numbers as target, got {found}",
            hint="let the data set return class numbers (torch.long)",
        )


def _check_range(y: Tensor, classes: int) -> None:
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= classes:
        raise DataError(
            f"speculation remembers by label, and {low if low < 0 else high} is none of the {classes} classes",
            hint=f"labels are 0 to {classes - 1}; leave samples out that are to be ignored",
        )


def _restore_memory(remembered: Remembered, state: Mapping[str, Any]) -> None:
    try:
        remembered.restore(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"what the checkpoint remembers does not fit this predictor: {type(error).__name__}: {error}",
            hint="resume with the form, cut and predictor of the run",
        ) from error
