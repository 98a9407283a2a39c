"""What the running workers really take: the planner corrects itself from it, and the forecast is checked with it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median

from convoy.events.event import Event, Sink
from convoy.graph.cost import Profile
from convoy.graph.partition import partition
from convoy.graph.split import allowed_cuts
from convoy.graph.stage_times import StageTime
from convoy.strategies.pipelined.describe import advice
from convoy.strategies.pipelined.plan import PipelinePlan

IMBALANCE = 0.05
"""How much longer than the mean the slowest stage may take before it is said."""
GAIN = 0.02
"""The least predicted gain for which stages are cut anew."""
SHORTEST = 0.005
"""Seconds a stage has to take for a mini-batch; where all take less, what differs is mostly the dispatching."""
ENOUGH = 20
"""Mini-batches that have to be through before their times mean something."""


@dataclass(frozen=True, slots=True)
class StageLoad:
    """Mean seconds of a stage's forward and backward for a mini-batch."""

    forward_seconds: float
    backward_seconds: float

    @property
    def seconds(self) -> float:
        return self.forward_seconds + self.backward_seconds


class LoadMeter:
    """A sink between the engine and the user's: sums up the stages' times and passes every event on.

    Called from worker threads; each touches only the cells of its own stage and kind.
    """

    def __init__(self, stages: int, sink: Sink | None) -> None:
        self._sink = sink
        self._stages = stages
        self.reset()

    def reset(self) -> None:
        self._spent = {(kind, str(i)): 0.0 for i in range(1, self._stages + 1) for kind in "FBU"}
        self._updates = {str(i): 0 for i in range(1, self._stages + 1)}
        self._last_end: float | None = None
        self._gaps: deque[float] = deque(maxlen=500)

    def __call__(self, event: Event) -> None:
        kind, subject = str(event.data.get("kind")), str(event.data.get("subject"))
        if (kind, subject) in self._spent:
            self._spent[kind, subject] += event.end - event.start
            if kind == "U":
                self._updates[subject] += 1
                if subject == "1":
                    if self._last_end is not None:
                        self._gaps.append(event.end - self._last_end)
                    self._last_end = event.end
        if self._sink is not None:
            self._sink(event)

    def pause(self) -> None:
        """The pipeline was drained: the time to the next update is not a step."""
        self._last_end = None

    @property
    def batches(self) -> int:
        """Mini-batches that went through all stages since the last reset."""
        return min(self._updates.values())

    @property
    def step_seconds(self) -> float | None:
        """Median time between updates of stage 1 while nothing was drained; None before there are two."""
        return median(self._gaps) if self._gaps else None

    def loads(self) -> tuple[StageLoad, ...]:
        """By stage; updates count as part of the backward."""
        return tuple(
            StageLoad(
                self._spent["F", str(i)] / max(self._updates[str(i)], 1),
                (self._spent["B", str(i)] + self._spent["U", str(i)]) / max(self._updates[str(i)], 1),
            )
            for i in range(1, self._stages + 1)
        )


def by_worker(loads: Sequence[StageLoad], lane: Callable[[str, int], str]) -> dict[str, float]:
    """Worker → seconds for a mini-batch; ``lane`` says who does the forward ("F") and the backward ("B") of a stage."""
    seconds: dict[str, float] = {}
    for stage, load in enumerate(loads, 1):
        for kind, spent in (("F", load.forward_seconds), ("B", load.backward_seconds)):
            seconds[lane(kind, stage)] = seconds.get(lane(kind, stage), 0.0) + spent
    return seconds


def imbalance(workers: Mapping[str, float]) -> float:
    """How much longer than the mean the slowest worker takes, as a share."""
    mean = sum(workers.values()) / len(workers)
    return max(workers.values()) / mean - 1.0 if mean else 0.0


def too_short(workers: Mapping[str, float]) -> bool:
    """Whether the workers take so little that their imbalance is noise."""
    return max(workers.values()) < SHORTEST


@dataclass(frozen=True, slots=True)
class Better:
    """Other cuts, what their stages should take, and the predicted gain: 0.1 means that the slowest stage gets a tenth
    of its time shorter than it is."""

    cuts: tuple[int, ...]
    times: tuple[StageTime, ...]
    gain: float


def better_cuts(profile: Profile, cuts: Sequence[int], loads: Sequence[StageLoad]) -> Better:
    """Cuts by the profile's costs, each stage's scaled to what its worker really took."""
    bounds = [0, *cuts, len(profile.graph.nodes)]
    costs = list(profile.costs)
    for start, stop, load in zip(bounds, bounds[1:], loads, strict=False):
        planned = sum(costs[start:stop])
        for position in range(start, stop):
            costs[position] *= load.seconds / planned if planned else 1.0
    found = partition(costs, allowed_cuts(profile.graph), len(loads))
    whole = sum(load.seconds for load in loads)
    forward = sum(load.forward_seconds for load in loads) / whole if whole else 0.0
    bounds = [0, *found.cuts, len(costs)]
    seconds = [sum(costs[start:stop]) for start, stop in pairwise(bounds)]
    times = tuple(StageTime(s * forward, s * (1.0 - forward), 0.0) for s in seconds)
    return Better(tuple(found.cuts), times, 1.0 - found.bottleneck / max(load.seconds for load in loads))


def as_measured(plan: PipelinePlan, meter: LoadMeter) -> PipelinePlan:
    """The plan with the times that were measured in place of those predicted."""
    stages = tuple(
        replace(stage, forward_seconds=load.forward_seconds, backward_seconds=load.backward_seconds)
        for stage, load in zip(plan.stages, meter.loads(), strict=True)
    )
    slowest = max(stages, key=lambda stage: stage.seconds or 0.0)
    plan = replace(plan, stages=stages, step_seconds=meter.step_seconds, bottleneck=f"worker {slowest.index}")
    return replace(plan, advice=advice(plan))
