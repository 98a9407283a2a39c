"""What a pipeline decided and predicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from convoy.schedule.action import Action
from convoy.schedule.plan import Plan, columns, megabytes
from convoy.schedule.schedule import DRIVER, Schedule
from convoy.schedule.walk import grid, walk
from convoy.strategies.pipelined.clock import PipelineSchedule


@dataclass(frozen=True)
class StagePlan:
    """One stage. Seconds are for a whole mini-batch, None where nothing was measured; ``activation_bytes`` is what
    autograd keeps of one mini-batch (A_i), ``handed_bytes`` what later stages receive of it."""

    index: int
    first: str
    last: str
    layers: str
    parameters: int
    weight_bytes: int
    delay: int
    staleness: float  # in weight updates
    handed_bytes: int
    activation_bytes: int | None = None
    forward_seconds: float | None = None
    backward_seconds: float | None = None

    @property
    def seconds(self) -> float | None:
        if self.forward_seconds is None or self.backward_seconds is None:
            return None
        return self.forward_seconds + self.backward_seconds


@dataclass(frozen=True)
class PipelinePlan(Plan):
    """Cuts, delays and what they should bring. ``cuts`` are the names of each stage's first node, without the first
    stage's. ``stale_share``: weights of all stages but the last, over all weights."""

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

    @property
    def weights_held_bytes(self) -> int:
        """Weights, their gradients and one momentum buffer: three times the weights."""
        return 3 * sum(stage.weight_bytes for stage in self.stages)

    @property
    def sequential_activation_bytes(self) -> int | None:
        if any(stage.activation_bytes is None for stage in self.stages):
            return None
        return sum(stage.activation_bytes or 0 for stage in self.stages)

    def table(self) -> str:
        head = ("stage", "layers", "from", "weights", "stale by", "keeps", "hands on", "fwd ms", "bwd ms", "share")
        total = sum(stage.seconds or 0.0 for stage in self.stages)
        rows = []
        for s in self.stages:
            kept = "–" if s.activation_bytes is None else megabytes(s.activation_bytes)
            forward, backward = _ms(s.forward_seconds), _ms(s.backward_seconds)
            share = f"{s.seconds / total:.0%}" if s.seconds and total else "–"
            rows.append(
                (str(s.index), s.layers, s.first, megabytes(s.weight_bytes), f"{s.staleness:g}", kept,
                 megabytes(s.handed_bytes), forward, backward, share)
            )  # fmt: skip
        lines = [
            f"{self.model}, batch {self.batch_size}: {len(self.stages)} stages, clock {self.clock}, {self.placement}"
            + (f", {self.accumulate} micro-batches a mini-batch" if self.accumulate > 1 else "")
            + f", {self.threads_per_worker} thread{'s' * (self.threads_per_worker > 1)} a worker",
            columns(head, rows),
            f"stale weights: {self.stale_share:.1%} of all; staleness is counted in weight updates",
        ]
        if self.activation_bytes is not None and self.sequential_activation_bytes:
            lines.append(
                f"activations held: {megabytes(self.activation_bytes)} "
                f"(sequential: {megabytes(self.sequential_activation_bytes)})"
            )
        if self.step_seconds is not None and self.speedup is not None:
            lines.append(
                f"predicted: {_ms(self.step_seconds)} ms a step, {self.speedup:.2f} times one worker's speed; "
                f"{self.bottleneck} sets the pace"
            )
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def schedule(self, batches: int) -> Schedule:
        """The schedule of the first ``batches`` mini-batches and their drain."""
        fed = tuple(sorted({1, len(self.stages)}))
        clock = PipelineSchedule(self.delays, self.links, fed, self.placement)
        schedule = Schedule()
        for batch in range(batches):
            schedule.extend(clock.enter(batch, self.accumulate))
        schedule.extend(clock.drain())
        return schedule

    def grid(self, batches: int = 4) -> str:
        """The first mini-batches as a table of workers and cycles."""
        return grid(self.schedule(batches))


def predict(plan: PipelinePlan) -> tuple[float, str]:
    """Seconds a mini-batch in the steady state, and the worker that sets the pace, by walking the schedule with the
    measured stage times. Updates and hand-over are inside the stage times."""
    times = {
        (kind, str(s.index)): (s.forward_seconds or 0.0) if kind == "F" else (s.backward_seconds or 0.0)
        for s in plan.stages
        for kind in "FB"
    }

    def seconds(action: Action) -> float:
        return times.get((action.kind, action.subject), 0.0) / plan.accumulate

    warm, counted = 2 * len(plan.stages) + 2, 12
    walked = walk(plan.schedule(warm + counted), seconds)
    ends = {t.action.batch: t.end for t in walked.timed if t.action.kind == "U" and t.action.subject == "1"}
    tail = len(plan.stages)  # the last batches run without company
    step = (ends[warm + counted - 1 - tail] - ends[warm - tail]) / (counted - 1)
    busy = {lane: share for lane, share in walked.busy().items() if lane != DRIVER}
    return step, max(busy, key=lambda lane: busy[lane])


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds * 1e3:.1f}"
