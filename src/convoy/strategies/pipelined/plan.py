"""What a pipeline decided and predicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar

from convoy.schedule.action import Action
from convoy.schedule.plan import Plan, columns, megabytes
from convoy.schedule.schedule import DRIVER, Schedule
from convoy.schedule.walk import grid, walk
from convoy.strategies.pipelined.clock import PipelineSchedule


@dataclass(frozen=True)
class StagePlan:
    """One stage. Seconds are for a whole mini-batch, the update in those of the backward, None where nothing was
    measured; ``activation_bytes`` is what
    autograd keeps of one mini-batch (A_i), ``handed_bytes`` what later stages receive of it."""

    index: int
    first: str
    last: str
    layers: str
    parameters: int
    weight_bytes: int
    delay: int
    staleness: float  # in weight updates, on average
    handed_bytes: int
    activation_bytes: int | None = None
    forward_seconds: float | None = None
    backward_seconds: float | None = None
    extra_weight_bytes: int = 0  # of a correction: stashed versions, predictions
    training_bytes: int = 0  # gradients and optimizer state

    @property
    def seconds(self) -> float | None:
        if self.forward_seconds is None or self.backward_seconds is None:
            return None
        return self.forward_seconds + self.backward_seconds


@dataclass(frozen=True)
class PipelinePlan(Plan):
    """Cuts, delays and what they should bring. ``cuts`` are the names of each stage's first node, without the first
    stage's. ``stale_share``: weights of all stages but the last, over all weights. ``sequential_seconds``: a step on
    one worker's threads; ``everyone_seconds``: a sequential one on all ``threads``. ``advice``: one sentence where
    something else would be better. ``correction``: the names in force, joined by +, or None. ``state_share``: bytes
    of optimizer state for a byte of trained weights."""

    strategy: ClassVar[str] = "pipelined"

    model: str
    batch_size: int
    clock: str
    placement: str
    accumulate: int
    delays: tuple[int, ...]
    links: tuple[tuple[int, int], ...]
    threads_per_worker: int
    cuts: tuple[str, ...]
    stages: tuple[StagePlan, ...]
    stale_share: float
    sequential_seconds: float | None = None
    step_seconds: float | None = None
    bottleneck: str | None = None
    notes: tuple[str, ...] = ()
    everyone_seconds: float | None = None
    threads: int = 1
    advice: str | None = None
    correction: str | None = None
    state_share: float = 1.0

    @property
    def speedup(self) -> float | None:
        if self.sequential_seconds is None or not self.step_seconds:
            return None
        return self.sequential_seconds / self.step_seconds

    @property
    def activation_bytes(self) -> int | None:
        """Activations held at once: the sum of (d_i + 1) * A_i / accumulate; None where A_i are not known."""
        total = 0.0
        for stage in self.stages:
            if stage.activation_bytes is None:
                return None
            total += (stage.delay + 1) * stage.activation_bytes / self.accumulate
        return round(total)

    def held_bytes(self, stage: StagePlan) -> int | None:
        """Activations that a stage holds at once."""
        if stage.activation_bytes is None:
            return None
        return round((stage.delay + 1) * stage.activation_bytes / self.accumulate)

    @property
    def sequential_weights_bytes(self) -> int:
        """Weights, their gradients and what the optimizer keeps of them."""
        return sum(stage.weight_bytes + stage.training_bytes for stage in self.stages)

    @property
    def weights_held_bytes(self) -> int:
        """The same with what a correction holds besides."""
        return self.sequential_weights_bytes + sum(stage.extra_weight_bytes for stage in self.stages)

    @property
    def sequential_activation_bytes(self) -> int | None:
        if any(stage.activation_bytes is None for stage in self.stages):
            return None
        return sum(stage.activation_bytes or 0 for stage in self.stages)

    def table(self) -> str:
        return plan_table(self)

    def beside(self, measured: PipelinePlan) -> str:
        """The table with what was measured beside what was predicted."""
        return plan_table(self, measured)

    def csv_rows(self) -> list[dict[str, Any]]:
        """One a stage, for a spreadsheet; seconds and bytes as they are."""
        return [
            {
                "stage": s.index,
                "layers": s.layers,
                "from": s.first,
                "to": s.last,
                "parameters": s.parameters,
                "weight_bytes": s.weight_bytes,
                "delay": s.delay,
                "staleness": s.staleness,
                "activation_bytes": s.activation_bytes,
                "held_bytes": self.held_bytes(s),
                "handed_bytes": s.handed_bytes,
                "forward_seconds": s.forward_seconds,
                "backward_seconds": s.backward_seconds,
            }
            for s in self.stages
        ]

    def schedule(self, batches: int) -> Schedule:
        """The schedule of the first ``batches`` mini-batches and their drain."""
        return pipeline_schedule(self.delays, self.links, self.placement, self.accumulate, batches)

    def grid(self, batches: int = 4) -> str:
        """The first mini-batches as a table of workers and cycles."""
        return grid(self.schedule(batches))


ACTION_SECONDS = 60e-6
"""What a worker spends on finding and reporting an action."""


def predict(plan: PipelinePlan, jitter: float = 0.0) -> tuple[float, str]:
    """Seconds a mini-batch in the steady state, and the worker that sets the pace, by walking the schedule with the
    measured stage times. Updates and hand-over are inside the stage times; ``jitter`` as in ``steady_step``."""
    times = [(stage.forward_seconds or 0.0, stage.backward_seconds or 0.0) for stage in plan.stages]
    return steady_step(plan.delays, times, plan.accumulate, plan.placement, plan.links, jitter)


def steady_step(
    delays: Sequence[int],
    times: Sequence[tuple[float, float]],
    accumulate: int = 1,
    placement: str = "colocated",
    links: Sequence[tuple[int, int]] | None = None,
    jitter: float = 0.0,
) -> tuple[float, str]:
    """Seconds between two mini-batches once the pipeline is full, and the busiest worker.

    ``times``: (forward, backward) of each stage for a mini-batch. Each action takes its time and a factor drawn about
    1 with the relative deviation ``jitter`` (always the same draws): without slack, stages wait for each other's slow
    moments.
    """
    stages = len(delays)
    chance = Random(0)
    known = {(kind, str(i)): pair["FB".index(kind)] for i, pair in enumerate(times, 1) for kind in "FB"}

    def seconds(action: Action) -> float:
        one = known.get((action.kind, action.subject))
        if one is None:
            return 0.0
        return one / accumulate * max(0.5, chance.gauss(1.0, jitter)) + ACTION_SECONDS

    warm, counted = 2 * stages + 2, 12 if not jitter else max(12, 40 // accumulate)
    linked = tuple(links) if links is not None else tuple((i, i + 1) for i in range(1, stages))
    walked = walk(pipeline_schedule(delays, linked, placement, accumulate, warm + counted), seconds)
    ends = {t.action.batch: t.end for t in walked.timed if t.action.kind == "U" and t.action.subject == "1"}
    step = (ends[warm + counted - 1 - stages] - ends[warm - stages]) / (counted - 1)  # the last run without company
    busy = {lane: share for lane, share in walked.busy().items() if lane != DRIVER}
    return step, max(busy, key=lambda lane: busy[lane])


def pipeline_schedule(
    delays: Sequence[int], links: Sequence[tuple[int, int]], placement: str, accumulate: int, batches: int
) -> Schedule:
    """The schedule of the first ``batches`` mini-batches and their drain."""
    clock = PipelineSchedule(tuple(delays), tuple(links), tuple(sorted({1, len(delays)})), placement)
    schedule = Schedule()
    for batch in range(batches):
        schedule.extend(clock.enter(batch, accumulate))
    schedule.extend(clock.drain())
    return schedule


def plan_table(plan: PipelinePlan, measured: PipelinePlan | None = None) -> str:
    """The plan for a person; with ``measured``, what was predicted and what came, side by side."""
    title = f"{plan.model}, batch {plan.batch_size}: {_count(len(plan.stages), 'stage')}, clock {plan.clock}, "
    title += plan.placement + (f", {plan.accumulate} micro-batches a mini-batch" if plan.accumulate > 1 else "")
    title += f", correction {plan.correction}" if plan.correction else ""
    lines = [f"{title}, {_count(plan.threads_per_worker, 'thread')} a worker", _stages(plan, measured)]
    lines.append(f"stale weights: {plan.stale_share:.1%} of all; staleness is counted in weight updates")
    if plan.activation_bytes is not None and plan.sequential_activation_bytes:
        lines.append(
            f"activations held: {megabytes(plan.activation_bytes)} "
            f"(sequential: {megabytes(plan.sequential_activation_bytes)})"
        )
    weights = f"weights, gradients and optimizer state: {megabytes(plan.weights_held_bytes)}"
    if plan.weights_held_bytes != plan.sequential_weights_bytes:
        weights += f" (sequential: {megabytes(plan.sequential_weights_bytes)})"
    lines.append(weights)
    if plan.step_seconds is not None and plan.speedup is not None:
        line = f"predicted: {_ms(plan.step_seconds)} ms a step, {plan.speedup:.2f} times one worker's speed"
        if plan.everyone_seconds is not None and plan.threads > plan.threads_per_worker:
            line += f" (sequential on {plan.threads} threads: {_ms(plan.everyone_seconds)} ms)"
        lines.append(f"{line}; {plan.bottleneck} sets the pace")
    if measured is not None and measured.step_seconds is not None:
        line = f"measured: {_ms(measured.step_seconds)} ms a step"
        if plan.step_seconds is not None:
            line += f", {measured.step_seconds / plan.step_seconds - 1.0:+.0%} against the forecast"
        if plan.sequential_seconds is not None:
            line += f", {plan.sequential_seconds / measured.step_seconds:.2f} times one worker's speed"
        lines.append(f"{line}; {measured.bottleneck} set the pace")
    advice = plan.advice if measured is None or measured.step_seconds is None else measured.advice
    if advice is not None:
        lines.append(f"advice: {advice}")
    return "\n".join([*lines, *(f"note: {note}" for note in plan.notes)])


def _stages(plan: PipelinePlan, measured: PipelinePlan | None) -> str:
    head = ["stage", "layers", "from", "weights", "stale by", "keeps", "holds", "hands on", "fwd ms", "bwd ms", "share"]
    if measured is not None:
        head += ["fwd was", "bwd was", "share was"]
    rows = []
    for index, s in enumerate(plan.stages):
        row = [str(s.index), s.layers, s.first, megabytes(s.weight_bytes), f"{s.staleness:g}"]
        row += [_size(s.activation_bytes), _size(plan.held_bytes(s)), megabytes(s.handed_bytes)]
        row += [_ms(s.forward_seconds), _ms(s.backward_seconds), _share(plan, index)]
        if measured is not None:
            was = measured.stages[index]
            row += [_ms(was.forward_seconds), _ms(was.backward_seconds), _share(measured, index)]
        rows.append(row)
    return columns(head, rows)


def _share(plan: PipelinePlan, index: int) -> str:
    total, own = sum(stage.seconds or 0.0 for stage in plan.stages), plan.stages[index].seconds
    return f"{own / total:.0%}" if own and total else "–"


def _size(amount: int | None) -> str:
    return "–" if amount is None else megabytes(amount)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number > 1)}"


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds * 1e3:.1f}"
