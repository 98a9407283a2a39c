"""A bound pipeline: takes mini-batches, hands back results of earlier ones, drains."""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn
from torch.optim import Optimizer

from convoy.engines.driver import OneThread
from convoy.engines.engine import Disturb, Engine, EngineOptions
from convoy.engines.inline import InlineEngine
from convoy.engines.interrupts import uninterrupted
from convoy.engines.program import Store
from convoy.engines.streams import Cuda, StreamsEngine
from convoy.engines.threads import ThreadsEngine
from convoy.errors import InternalError, OptionError
from convoy.events.event import Event, Sink
from convoy.events.warn import tell
from convoy.schedule.action import Action
from convoy.schedule.schedule import Schedule
from convoy.strategies.base import Loss, Settings, StepResult
from convoy.strategies.batch import channels_last, prepare_model, to_device
from convoy.strategies.pipelined.assembly import assemble, feeds_of
from convoy.strategies.pipelined.corrections import Corrections
from convoy.strategies.pipelined.devices import current, gather
from convoy.strategies.pipelined.foresight import Foreseen
from convoy.strategies.pipelined.meter import (
    ENOUGH,
    GAIN,
    IMBALANCE,
    LoadMeter,
    StageLoad,
    as_measured,
    better_cuts,
    by_worker,
    imbalance,
    too_short,
)
from convoy.strategies.pipelined.optimizer import check, extent, mark_stepped, snapshot
from convoy.strategies.pipelined.plan import PipelinePlan
from convoy.strategies.pipelined.planned import Planned
from convoy.strategies.pipelined.planner import keeps_memory, plan_pipeline
from convoy.strategies.pipelined.program import Batch
from convoy.strategies.pipelined.result import PipelinedResult
from convoy.strategies.pipelined.suspects import suspects

if TYPE_CHECKING:
    from convoy.graph.stage_times import StageTime
    from convoy.schedule.schedule import Entry
    from convoy.strategies.pipelined.strategy import Pipelined

PRECISIONS = ("float32", "bfloat16")
CHOSEN = ("clock", "accumulate", "correction")
"""What stages="auto" chooses besides the cuts, as a checkpoint and the decision hold it."""


class PipelinedStep:
    """Implements ``Step`` for a pipeline. Capture, planning and workers come with the first batch."""

    def __init__(
        self,
        strategy: Pipelined,
        model: nn.Module,
        loss: Loss,
        optimizer: Optimizer,
        settings: Settings,
        sink: Sink | None,
        disturb: Disturb | None = None,
        keep_schedule: bool = False,
    ) -> None:
        check(optimizer)
        check_settings(settings)
        Corrections.parse(strategy.correction).check(optimizer, strategy.accumulate)
        self._strategy, self._model, self._loss, self._optimizer = strategy, model, loss, optimizer
        self._settings, self._sink, self._disturb = settings, sink, disturb
        self._automatic = strategy.stages == "auto"
        self._recuts, self._own_cuts = strategy.recut == "auto", strategy.cuts is None and strategy.ppv is None
        self._measured: PipelinePlan | None = None
        self.schedule: Schedule | None = Schedule() if keep_schedule else None
        self._engine: Engine | None = None
        self._one_thread = OneThread()
        self._closed = False
        self._next = 0
        self._began = 0  # the mini-batch of the run with which the pipeline begins
        self._foreseen: Foreseen | None = None
        self._said_uneven = self._ends = False
        self._cuts: list[str] | None = None  # of the run that is resumed
        self._pending: deque[PipelinedResult] = deque()
        self._updates: dict[int, list[Action]] = {}  # batch → its updates that are not done yet
        self._entered: Action | None = None
        self._total = settings.total_steps
        self._begin = True  # nothing is in flight: the first batch, or the first after a drain

    # --- Step ----------------------------------------------------------------------------------------------

    def __call__(self, x: Any, y: Any) -> PipelinedResult | None:
        if self._closed:
            raise InternalError("the step was closed", hint="bind the strategy again")
        try:
            return self._take(x, y)
        except BaseException:
            self._one_thread.release()
            raise

    def _take(self, x: Any, y: Any) -> PipelinedResult | None:
        self._one_thread.hold(self._engine)
        x, y = self._prepare(x, y)
        if self._engine is None:
            self._build(x, y)
            self._one_thread.hold(self._engine)
        assert self._engine is not None
        self._check_optimizer()
        feeds = feeds_of(
            self._planned, self._loss, x, y
        )  # a batch that does not fit is refused before it has any effect
        if self._begin:
            self._optimizer.zero_grad(set_to_none=True)
            self._begin = False
        batch = Batch(snapshot(self._optimizer))
        with uninterrupted():
            number, self._next = self._next, self._next + 1
            self._program.batches[number] = batch
            for index, fed in enumerate(feeds):
                self._program.bring(number, index, fed)
            entries = self._clock.enter(number, len(feeds))
            self._submit(entries)
            ends = {a.subject: a for _, a in entries if a.kind == "F"}  # stage → the batch's last part there
            self._pending.append(PipelinedResult(number, batch, y, self._engine, ends[str(self._clock.stages)]))
            before, self._entered = self._entered, ends["1"]
            mark_stepped(self._optimizer)
        if before is not None:  # the driver runs at most one mini-batch ahead of the first stage
            self._engine.wait(before)
        self._forget()
        if len(self._pending) > self._behind:
            return self._pending.popleft()
        return None

    def begin_epoch(self, epoch: int, epochs: int, batches: int | None = None) -> None:
        """There is no flush between epochs; only the length of the run is of interest."""
        if self._total is None and batches is not None:
            self._total = epochs * batches

    def end_epoch(self, *, validation_accuracy: float | None = None, validation_loss: float | None = None) -> None:
        """Epochs make no difference."""

    def drain(self) -> list[StepResult]:
        if self._engine is None:
            return []
        try:
            with uninterrupted():
                self._submit(self._clock.drain())
            self._engine.settle()
        finally:
            self._one_thread.release()
        self._forget()
        self._entered, self._begin = None, True
        self._rebalance()  # what it raises costs no result: the next drain returns them
        results: list[StepResult] = list(self._pending)
        self._pending.clear()
        return results

    def close(self) -> None:
        self._closed = True
        self._one_thread.release()
        if self._engine is not None:
            self._engine.close()
            gather(self._model, self._settings.device)

    def state(self) -> Mapping[str, Any]:
        if self._pending:
            raise InternalError("the state of a pipeline is only defined after a drain")
        planned = self._planned_so_far
        cuts = self._cuts if planned is None else planned.plan.cuts
        state: dict[str, Any] = {"batch": self._next, "version": self._next, "began": self._began}
        state["cuts"] = None if cuts is None else list(cuts)
        if self._automatic and cuts is not None:  # also of a resumed run that has not begun
            chosen = self._strategy if planned is None else planned.strategy
            state |= {name: getattr(chosen, name) for name in CHOSEN}
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        if self._engine is not None:
            raise InternalError("a pipeline is restored before its first batch")
        self._next = int(state["batch"])
        # Without cuts it is the state of another strategy, which this one follows.
        self._began = int(state.get("began", 0 if "cuts" in state else self._next))
        self._cuts = state.get("cuts")
        chosen = self._strategy
        if chosen.stages == "auto":
            if self._cuts is not None:
                old = {name: state[name] for name in CHOSEN if name in state}
                slack = min(chosen.slack, len(self._cuts))  # where it chose no pipeline, there is none
                self._strategy = replace(chosen, stages=None, cuts=tuple(self._cuts), slack=slack, recut="off", **old)
            return
        automatic = chosen.cuts is None and chosen.ppv is None
        if automatic and self._cuts is not None and len(self._cuts) + 1 == (chosen.stages or 2):
            # Measured again, they might fall elsewhere, and the numbers would be others.
            self._strategy = replace(chosen, stages=None, cuts=tuple(self._cuts), recut="off")

    def foresee(self, x: Any, y: Any) -> None:
        """Plan on this mini-batch what will be trained later, which raises what can be known by now. Trains nothing."""
        Corrections.parse(self._strategy.correction).check_length(self._total)
        x, y = self._prepare(x, y)
        prepare_model(self._model, self._optimizer, self._settings.device, self._settings.channels_last)
        self._foreseen = Foreseen.of(
            self._strategy, self._model, self._loss, x, y, self._planning_settings, self._optimizer
        )

    def stay(self) -> None:
        """The next drain is the last one: cut nothing anew at it."""
        self._ends = True

    def plan(self) -> PipelinePlan | None:
        planned = self._planned_so_far
        return None if planned is None else planned.plan

    @property
    def suspects(self) -> str | None:
        """Of what is in force: what was chosen where that was left open."""
        stages = None if self._engine is None else self._clock.stages
        return suspects(self._strategy, stages=stages, automatic=self._automatic)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        try:
            if kind is None or issubclass(kind, KeyboardInterrupt):
                self.drain()
        finally:
            self.close()

    # --- inside --------------------------------------------------------------------------------------------

    @property
    def _planned_so_far(self) -> Planned | None:
        if self._engine is not None:
            return self._planned
        return None if self._foreseen is None else self._foreseen.planned

    @property
    def _planning_settings(self) -> Settings:
        """In a resumed run the cuts are known; to move them, costs are needed all the same."""
        moves = self._recuts and self._cuts != []
        return replace(self._settings, forecast=self._settings.forecast or moves)

    @property
    def _behind(self) -> int:
        """Batches between the one that enters and the one whose loss falls in that cycle: ceil(K / accumulate)."""
        return -(-(self._clock.stages - 1) // self._strategy.accumulate)

    def _prepare(self, x: Any, y: Any) -> tuple[Any, Any]:
        x, y = to_device(x, self._settings.device), to_device(y, self._settings.device)
        return (channels_last(x) if self._settings.channels_last else x), y

    def _build(self, x: Any, y: Any) -> None:
        prepare_model(self._model, self._optimizer, self._settings.device, self._settings.channels_last)
        if not self._model.training:  # otherwise single layers may be in eval mode on purpose (frozen BatchNorm)
            self._model.train()
        asked, given = self._strategy, (self._model, self._loss, x, y, self._planning_settings, self._optimizer)
        planned = plan_pipeline(asked, *given) if self._foreseen is None else self._foreseen.now(*given)
        self._strategy = planned.strategy
        self._install(planned)
        self._foreseen = None
        if asked.stages == "auto" and self._sink is not None:
            chosen = {name: getattr(planned.strategy, name) for name in ("stages", *CHOSEN)}
            data = {"cause": "timing", "cuts": list(planned.plan.cuts), **chosen}
            self._sink(Event("decision", "auto", batch=self._next, data=data))

    def _install(self, planned: Planned) -> None:
        """Stages, schedule and workers for a plan, from the version the weights have now."""
        self._planned = planned
        plan = planned.plan
        corrections = Corrections.parse(self._strategy.correction)
        corrections.check_length(self._total)
        self._warn(corrections, plan)
        self._program, self._clock, devices = assemble(
            planned, self._loss, self._optimizer, self._settings,
            total_steps=self._total, start=self._next, began=self._began,
        )  # fmt: skip
        if self._sink is not None:
            self._sink(Event("plan", "pipelined", data=plan.to_dict()))
        self._meter = LoadMeter(self._clock.stages, self._sink)
        self._measured = None
        options = EngineOptions(
            lanes={lane: plan.threads_per_worker for lane in self._clock.lanes()},
            sink=self._meter,
            clock=time.perf_counter,
            watchdog_seconds=self._settings.watchdog_seconds,
            disturb=self._disturb,
            versions={f"W{i}": self._next for i in range(1, self._clock.stages + 1)},
        )
        self._engine = self._make_engine(options, devices)
        self._extent = extent(self._optimizer)
        weakref.finalize(self, self._engine.abandon)  # a step that was dropped without close() leaves no threads
        weakref.finalize(self, self._one_thread.release)

    def _make_engine(self, options: EngineOptions, devices: Sequence[torch.device | None]) -> Engine:
        if self._strategy.engine == "inline":
            return InlineEngine(self._program, Store(), options)
        if torch.device(self._settings.device).type == "cuda" and self._strategy.engine != "threads":
            lanes = {self._clock.lane(kind, i): d for i, d in enumerate(devices, 1) for kind in "FB"}
            indices = {lane: d.index if d is not None else current(self._settings.device) for lane, d in lanes.items()}
            return StreamsEngine(self._program, Store(), options, Cuda(indices))
        return ThreadsEngine(self._program, Store(), options)

    def recut(self, cuts: Sequence[str]) -> None:
        """Cut anew, at places as a plan names them; only when nothing is in flight. Weights and optimizer stay."""
        if self._engine is None or self._pending:
            raise InternalError("a pipeline is cut anew right after a drain")
        self._move(self._cut_at(cuts))

    def _cut_at(self, cuts: Sequence[str], times: Sequence[StageTime] | None = None) -> Planned:
        strategy = replace(self._strategy, stages=None, ppv=None, cuts=tuple(cuts), recut="off")
        return self._planned.with_cuts(strategy, times)

    def _move(self, planned: Planned) -> None:
        assert self._engine is not None
        self._engine.close()
        self._install(planned)

    def measured(self) -> PipelinePlan | None:
        """The plan with measured times, of the last stretch that was long enough; None before there is one."""
        if self._engine is None:
            return None
        if self._meter.batches < ENOUGH and self._measured is not None:
            return self._measured
        return as_measured(self._planned.plan, self._meter) if self._meter.batches >= 2 else None

    def _rebalance(self) -> None:
        """After a drain: say when the workers' loads differ, and cut anew where that is wanted and worth it."""
        self._meter.pause()
        if self._meter.batches < ENOUGH:
            return
        self._measured = as_measured(self._planned.plan, self._meter)
        loads = self._meter.loads()
        workers = by_worker(loads, self._clock.lane)
        uneven = imbalance(workers)
        self._meter.reset()
        if len(workers) < 2 or uneven <= IMBALANCE or too_short(workers):
            return
        ends = self._ends or (self._total is not None and self._next >= self._total)
        if self._said_uneven and (ends or not self._recuts):
            return
        better = self._better(loads)
        if better is not None and self._recuts and not ends:
            planned, gain = better
            self._move(planned)
            if self._sink is not None:
                cuts = list(planned.strategy.cuts or ())
                data = {"cause": "timing", "cuts": cuts, "imbalance": uneven, "gain": gain}
                self._sink(Event("decision", "recut", batch=self._next, data=data))
        elif not self._said_uneven:
            self._said_uneven = True
            slowest = max(workers, key=lambda name: workers[name])
            message = f"{slowest} takes {uneven:.0%} longer than the mean of the workers"
            if better is not None and not self._recuts:
                message += '; --recut auto (recut="auto") would cut anew at the next drain'
            tell(self._sink, Event("warning", "imbalance", data={"message": message}))

    def _better(self, loads: Sequence[StageLoad]) -> tuple[Planned, float] | None:
        """The plan with cuts that are worth moving to, where convoy chose them, and what they gain."""
        profile = self._planned.profile
        if profile is None or not self._own_cuts or self._strategy.placement == "split":
            return None
        found = better_cuts(profile, self._planned.cuts, loads)
        if found.gain <= GAIN:
            return None
        planned = self._cut_at(self._planned.names(found.cuts), found.times)
        return (planned, found.gain) if keeps_memory(planned.plan, self._settings.max_memory) else None

    def _submit(self, entries: list[Entry]) -> None:
        assert self._engine is not None
        self._engine.submit(entries)
        if self.schedule is not None:
            self.schedule.extend(entries)
        for _, action in entries:
            if action.kind == "U":
                self._updates.setdefault(action.batch, []).append(action)

    def _check_optimizer(self) -> None:
        if extent(self._optimizer) != self._extent:
            raise OptionError(
                f"the optimizer had {sum(self._extent)} parameters when training began and now has "
                f"{sum(extent(self._optimizer))}",
                hint="drain and close the step, then bind the strategy again",
            )

    def _warn(self, corrections: Corrections, plan: PipelinePlan) -> None:
        momentum = float(self._optimizer.param_groups[0].get("momentum", 0.0))
        for message in corrections.warnings(tuple(stage.staleness for stage in plan.stages), momentum):
            tell(self._sink, Event("warning", "correction", data={"message": message}))

    def _forget(self) -> None:
        """Drop what finished batches held."""
        assert self._engine is not None
        for number, updates in list(self._updates.items()):
            if len(updates) == self._clock.stages and all(map(self._engine.is_done, updates)):
                del self._updates[number], self._program.batches[number]


def check_settings(settings: Settings) -> None:
    """Raise OptionError for values that make no sense."""
    if settings.precision not in PRECISIONS:
        raise OptionError(f"precision {settings.precision!r} is unknown", hint=f"one of: {', '.join(PRECISIONS)}")
    if settings.threads is not None and settings.threads < 1:
        raise OptionError(f"threads must be at least 1, not {settings.threads}", hint="leave it out for all cores")
    if settings.clip is not None and not settings.clip > 0:
        raise OptionError(f"clip must be greater than 0, not {settings.clip}", hint="leave it out for no clipping")
