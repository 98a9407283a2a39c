"""When each stage works on what: delays, and the schedule that follows from them.

K pairs of registers cut the layers into K + 1 stages. A stage with delay d works in the order F(0) ... F(d - 1), then
F(u + d), B(u), F(u + d + 1), B(u + 1), ..., then the remaining B. Nothing else is needed: every clock, placement and
accumulation differs only in its delays and lanes. Source: Zhang and Abdelrahman 2021 for the registers clock; the
other clocks are ours.

    cycle       0       1           2           3           4       5
    worker 1    F1.0    F1.1        F1.2 B1.0   F1.3 B1.1   B1.2    B1.3
    worker 2            F2.0 B2.0   F2.1 B2.1   F2.2 B2.2   F2.3 B2.3
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from convoy.errors import OptionError
from convoy.schedule.action import Action, Ref
from convoy.schedule.schedule import DRIVER, Entry

CLOCKS = ("registers", "1f1b")
PLACEMENTS = ("colocated", "split")


def delays(stages: int, clock: str = "registers", slack: int = 0) -> tuple[int, ...]:
    """Delay of each stage in parts entered, first stage first.

    registers: d_i = 2(K - i + 1), the published one. 1f1b: d_i = min(K - i + 1 + slack, 2(K - i + 1)).
    """
    if clock not in CLOCKS:
        raise OptionError(f"there is no clock {clock!r}", hint=f"choose one of {', '.join(CLOCKS)}")
    behind = [stages - i for i in range(1, stages + 1)]  # K - i + 1
    if clock == "registers":
        return tuple(2 * k for k in behind)
    return tuple(min(k + slack, 2 * k) for k in behind)


@dataclass(frozen=True, slots=True)
class Part:
    """One micro-batch: ``unit`` is its running number, ``last`` whether its mini-batch ends with it."""

    unit: int
    batch: int
    index: int
    last: bool


@dataclass
class PipelineSchedule:
    """Emits the schedule batch by batch; holds nothing but counters.

    ``links`` are the pairs (producer, consumer) of stages, counted from 1, between which values cross; ``fed`` the
    stages that need something of the batch itself. ``version`` is the number of updates applied before.
    """

    stage_delays: tuple[int, ...]
    links: tuple[tuple[int, int], ...]
    fed: tuple[int, ...]
    placement: str = "colocated"
    version: int = 0
    unit: int = 0
    _versions: list[int] = field(init=False)
    _waiting: list[deque[Part]] = field(init=False)

    def __post_init__(self) -> None:
        if self.placement not in PLACEMENTS:
            raise OptionError(f"there is no placement {self.placement!r}", hint="choose colocated or split")
        self._versions = [self.version] * self.stages
        self._waiting = [deque() for _ in range(self.stages)]

    @property
    def stages(self) -> int:
        return len(self.stage_delays)

    @property
    def in_flight(self) -> int:
        """Parts that have not been through their backward at stage 1."""
        return len(self._waiting[0])

    def lane(self, kind: str, stage: int) -> str:
        """The worker that does ``kind`` at ``stage`` (from 1)."""
        if self.placement == "colocated":
            return f"worker {stage}"
        if stage == self.stages:
            return f"worker {stage}"
        return f"worker {stage}{'f' if kind == 'F' else 'b'}"

    def lanes(self) -> tuple[str, ...]:
        names = [self.lane(kind, stage) for stage in range(1, self.stages + 1) for kind in "FB"]
        return tuple(dict.fromkeys(names))

    def enter(self, batch: int, parts: int = 1) -> list[Entry]:
        """Mini-batch ``batch`` enters as ``parts`` micro-batches."""
        entries: list[Entry] = []
        for index in range(parts):
            part = Part(self.unit, batch, index, index == parts - 1)
            self.unit += 1
            feeds = tuple(Ref(f"i{stage}", part.unit) for stage in self.fed)
            entries.append((DRIVER, Action("E", "0", batch, index, (), feeds)))
            for stage in range(1, self.stages + 1):
                entries.append(self._forward(stage, part))
                waiting = self._waiting[stage - 1]
                waiting.append(part)
                if len(waiting) > self.stage_delays[stage - 1]:
                    entries.extend(self._backward(stage, waiting.popleft()))
        return entries

    def drain(self) -> list[Entry]:
        """The remaining backwards, last stage first."""
        entries: list[Entry] = []
        for stage in range(self.stages, 0, -1):
            waiting = self._waiting[stage - 1]
            while waiting:
                entries.extend(self._backward(stage, waiting.popleft()))
        return entries

    def _weights(self, stage: int) -> Ref:
        return Ref(f"W{stage}", self._versions[stage - 1])

    def _forward(self, stage: int, part: Part) -> Entry:
        reads = [self._weights(stage)]
        reads += [Ref(f"i{stage}", part.unit)] * (stage in self.fed)
        reads += [Ref(f"x{p}>{c}", part.unit) for p, c in self.links if c == stage]
        writes = [Ref(f"s{stage}", part.unit)]
        writes += [Ref(f"x{p}>{c}", part.unit) for p, c in self.links if p == stage]
        action = Action("F", str(stage), part.batch, part.index, tuple(reads), tuple(writes))
        return self.lane("F", stage), action

    def _backward(self, stage: int, part: Part) -> list[Entry]:
        lane = self.lane("B", stage)
        reads = [self._weights(stage), Ref(f"s{stage}", part.unit)]
        reads += [Ref(f"g{c}>{p}", part.unit) for p, c in self.links if p == stage]
        writes = [Ref(f"g{c}>{p}", part.unit) for p, c in self.links if c == stage]
        gradient = Ref(f"u{stage}", part.batch)
        if part.last:
            writes.append(gradient)
        entries = [(lane, Action("B", str(stage), part.batch, part.index, tuple(reads), tuple(writes)))]
        if part.last:
            old = self._weights(stage)
            self._versions[stage - 1] += 1
            update = Action("U", str(stage), part.batch, 0, (old, gradient), (self._weights(stage),))
            entries.append((lane, update))
        return entries


def staleness_in_updates(stage_delays: Sequence[int], accumulate: int) -> tuple[float, ...]:
    """Delay of each stage in weight updates: d / accumulate, the average over its micro-batches. Where it is no whole
    number, some forward passes read weights as old as it rounded up, others as it rounded down."""
    return tuple(d / accumulate for d in stage_delays)


def age(staleness: float, unit: str = "update") -> str:
    """How old weights are, for a person; an average is said to be one where forward passes differ from it."""
    text = f"{staleness:g} {unit}{'s' * (staleness != 1)} old"
    return text if staleness == int(staleness) else f"{text} on average"
