"""``Speculative`` bound to a model: each mini-batch exact, probing or speculating, on two engines."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from convoy.engines.engine import Disturb
from convoy.engines.inline import InlineEngine
from convoy.engines.pool import POOL, PoolEngine
from convoy.errors import CheckpointError, DataError, OptionError
from convoy.events.event import Event, EventKind, Sink
from convoy.events.warn import tell
from convoy.graph.graph import Graph
from convoy.strategies.base import Loss, Settings
from convoy.strategies.batch import arguments, batch_size
from convoy.strategies.pipelined.optimizer import snapshot
from convoy.strategies.speculative.acceptance import Selection, cosine
from convoy.strategies.speculative.build import ENGINES, Prepared, Programs, Remembered, describe, prepare
from convoy.strategies.speculative.controller import Controller, Mode, Rule
from convoy.strategies.speculative.frame import NotedFrame
from convoy.strategies.speculative.kernels import coupled
from convoy.strategies.speculative.plan import SpeculativePlan
from convoy.strategies.speculative.predictors import Zero
from convoy.strategies.speculative.strategy import Speculative
from convoy.strategies.speculative.timing import TimeSaved
from convoy.strategies.tasks.settled_step import SettledStep, allowed_threads


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


class SpeculativeStep(SettledStep):
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
        super().__init__(model, loss, optimizer, settings, sink, disturb=disturb, keep_schedule=keep_schedule)
        if torch.device(settings.device).type != "cpu":
            raise OptionError(
                f"speculative training shares a step among cores of a CPU, but device is {settings.device!r}",
                hint="choose another strategy on an accelerator",
            )
        self._strategy = strategy
        choice = strategy.choice
        self._controller = Controller(
            Rule.parse(strategy.controller), strategy.warmup, skips=strategy.form == "faithful" and choice.kind is Zero,
        )  # fmt: skip
        self._time = TimeSaved()
        self._programs: Programs | None = None
        self._remembered: Remembered | None = None
        self._restored: Mapping[str, Any] | None = None
        self._plan: SpeculativePlan | None = None
        self._foreseen: SpeculativePlan | None = None
        self._looked = False  # whether the run's length was looked at

    def __call__(self, x: Any, y: Any) -> SpeculativeResult:
        check_labels(y, batch_size(x))
        x, y = self._batch_here(x, y)
        graph = self._captured(x)
        programs = self._prepare(x)
        _check_range(y, programs.prepared.classes)
        mode = self._controller.mode(self._batch)
        inputs = graph.bind(*arguments(x))
        frame = NotedFrame(self._batch, [], inputs, y, snapshot(self._optimizer), batch_size(x))
        built = programs.of(mode)
        began = time.perf_counter()
        self._carry_out(built, frame)
        self._time.add(mode, time.perf_counter() - began, batch_size(x))
        assert frame.loss is not None
        return SpeculativeResult(frame.batch, frame.loss, frame.output, y, self._after(mode, frame))

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
        self._watch(mode, frame)
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

    def _watch(self, mode: Mode, frame: NotedFrame) -> None:
        controller = self._controller
        assert frame.loss is not None
        if controller.watch(mode, float(frame.loss), frame.samples):
            told = {"on": False, "loss": controller.loss, "agreement": controller.agreement}
            self._decide("speculation", frame.batch, told)
            message = (
                f"the loss rose to {controller.loss:.3g} while speculating, so training is exact for the next "
                f"{controller.rests(frame.batch)} mini-batches at least; a lower threshold harms less"
            )
            self._report("warning", "speculation", frame.batch, {"message": message})

    def _decide(self, name: str, batch: int, data: Mapping[str, Any]) -> None:
        self._report("decision", name, batch, {"cause": "data", **data})

    def _report(self, kind: EventKind, name: str, batch: int, data: Mapping[str, Any]) -> None:
        tell(self._sink, Event(kind, name, batch=batch, data=data))

    # --- preparing -----------------------------------------------------------------------------------------

    def _prepare(self, x: Any) -> Programs:
        """The programs for the model in its present mode."""
        if self._has_changed() or self._programs is None:
            self._stop()
            graph = self._captured(x)
            prepared = self._prepared(graph, x)
            self._remembered, self._programs = prepared.remembered, Programs(prepared)
            inside = [unit for unit in prepared.units.units if unit.name in prepared.region.inside]
            choice = self._strategy.choice  # through BatchNorm nothing comes to samples that are left out
            unbiased = (choice.dithered or choice.unbiased) and not any(map(coupled, inside))
            self._controller.unbiased = unbiased
            if self._restored is not None:
                _restore_memory(self._remembered, self._restored)
                self._restored = None
            self._begin(self._programs, batch_size(x))
        return self._programs

    def _prepared(self, graph: Graph, x: Any) -> Prepared:
        return prepare(
            self._strategy, graph, self._model, self._loss, self._optimizer, self._settings, self._remembered,
            graph.bind(*arguments(x)),
        )  # fmt: skip

    def _begin(self, programs: Programs, samples: int) -> None:
        """The engines, and the plan, which is told once."""
        lanes = self._lanes
        self._open(InlineEngine if POOL in lanes else PoolEngine, lanes, programs.of("exact").program)
        if self._plan is None:
            self._plan = self._described(programs.prepared, samples)
            self._report("plan", Speculative.name, -1, self._plan.to_dict())

    @property
    def _lanes(self) -> Mapping[str, int]:
        """Lane → its intra-op threads."""
        threads = allowed_threads(self._settings)
        each = max(1, threads // ENGINES)
        if self._strategy.engine == "inline" or (self._strategy.engine == "auto" and threads == 1):
            return {POOL: each}
        return {f"engine {i + 1}": each for i in range(ENGINES)}

    def _described(self, prepared: Prepared, samples: int) -> SpeculativePlan:
        lanes = self._lanes
        return describe(self._strategy, prepared, len(lanes), next(iter(lanes.values())), samples)

    def _stop(self) -> None:
        self._programs = None
        super()._stop()

    # --- the rest of ``Step`` ------------------------------------------------------------------------------

    def begin_epoch(self, epoch: int, epochs: int, batches: int | None = None) -> None:
        """Epochs make no difference; a run that they leave too short to speculate is warned of, once."""
        total = self._settings.total_steps
        if total is None and batches is not None:
            total = epochs * batches
        if total is None or self._looked:
            return
        self._looked = True
        warning = self._controller.too_short(total)
        if warning is not None:
            self._report("warning", "speculation", self._batch, {"message": warning})

    def state(self) -> Mapping[str, Any]:
        remembered = self._restored if self._remembered is None else self._remembered.state()
        return {**super().state(), "controller": self._controller.state(), "remembered": remembered}

    def restore(self, state: Mapping[str, Any]) -> None:
        super().restore(state)
        if "controller" in state:
            self._controller.restore(state["controller"])
            self._restored = state["remembered"]

    @property
    def suspects(self) -> str | None:
        """None as long as nothing was speculated."""
        return self._strategy.suspects if self._controller.speculated(self._batch) else None

    def foresee(self, x: Any, y: Any) -> None:
        """Plan on this mini-batch what will be trained later, which raises what can be known by now. Trains nothing,
        and keeps no program: the model may have changed by then."""
        check_labels(y, batch_size(x))
        x, y = self._batch_here(x, y)
        prepared = self._prepared(self._captured(x), x)
        _check_range(y, prepared.classes)
        self._foreseen = self._described(prepared, batch_size(x))
        self._graph = None

    def plan(self) -> SpeculativePlan | None:
        return self._foreseen if self._plan is None else self._plan


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
