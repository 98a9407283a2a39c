"""Who does what when: work of two sorts laid out on two lanes. Plain Python, a pure function of the work.

    work        sort      lane      forward of two layers in two groups of output channels, then their backward
    F conv      conv      conv      F1/0  F1/1       F2/0   F2/1 ...            I2/0  I2/1  G2/0  G2/1 ...
    F bn+relu   nonconv   nonconv         N1/0  N1/1        N2/0  N2/1 ... L ...      N1/0  N1/1  U2

So the non-CONV tasks of a group run inside the CONV tasks of the next group, and the weight gradient, for which
nobody waits, fills the time in which the CONV lane waits for the last group. Nothing of that is written down as a
rule: it is what list scheduling by upward rank (Topcuoglu et al. 2002) makes of reads, writes and seconds.

Another machine, real or modelled, is another set of seconds: a lane that is not in ``Work.seconds`` cannot do it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Final, Literal, TypeAlias

from convoy.errors import InternalError
from convoy.schedule.action import Action
from convoy.schedule.recurring import predecessors, upward_ranks
from convoy.schedule.schedule import DRIVER, Entry

CONV: Final = "conv"
NONCONV: Final = "nonconv"
"""The lanes, and the sorts of work for which they are."""

Sort = Literal["conv", "nonconv"]
Phase = Literal["forward", "loss", "feature-map gradient", "weight gradient", "update"]
_Queue: TypeAlias = "list[tuple[float, int]]"  # a heap of (− rank, place)
HANDOVER_SECONDS = 5e-5
"""From the end of an action to the start of one that waited for it on the other lane: a thread wakes."""


@dataclass(frozen=True, slots=True)
class Work:
    """One action of mini-batch 0, and what it takes: lane → seconds. Without a lane it is the driver's."""

    action: Action
    sort: Sort
    phase: Phase
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def least(self) -> float:
        return min(self.seconds.values(), default=0.0)


@dataclass(frozen=True)
class Layout:
    """Entries in program order, with the seconds at which they are expected to start and end."""

    entries: tuple[Entry, ...]
    starts: tuple[float, ...]
    ends: tuple[float, ...]

    @property
    def finish(self) -> float:
        return max(self.ends, default=0.0)

    def busy(self) -> dict[str, float]:
        """Lane → seconds in which it works."""
        total: dict[str, float] = {}
        for (lane, _), start, end in zip(self.entries, self.starts, self.ends, strict=True):
            if lane != DRIVER:
                total[lane] = total.get(lane, 0.0) + end - start
        return total


def arrange(work: Sequence[Work], handover: float = HANDOVER_SECONDS) -> Layout:
    """Lay out ``work`` (in a valid program order): the shorter of two list schedules.

    A lane that is free takes the ready action of the highest upward rank among those of its own sort, and only where
    there is none another that it can do; or simply that of the highest rank. Where each action has one lane the two
    agree.
    """
    before = predecessors([one.action for one in work])
    first = _listed(work, before, handover, own_first=True)
    if all(len(one.seconds) < 2 for one in work):
        return first
    second = _listed(work, before, handover, own_first=False)
    return second if second.finish < first.finish else first


def one_after_the_other(work: Sequence[Work]) -> Layout:
    """Nothing overlaps: each action on the lane of its sort, in program order."""
    entries: list[Entry] = []
    starts: list[float] = []
    ends: list[float] = []
    now = 0.0
    for one in work:
        lane = one.sort if one.sort in one.seconds else next(iter(one.seconds), DRIVER)
        entries.append((lane, one.action))
        starts.append(now)
        now += one.seconds.get(lane, 0.0)
        ends.append(now)
    return Layout(tuple(entries), tuple(starts), tuple(ends))


@dataclass(frozen=True, slots=True)
class Bounds:
    """What no schedule can undercut, in seconds. ``serial``: all work one after the other. ``balance``: the busier
    lane, each doing its own sort. ``shared``: half of the work, if every action could go on either lane. ``chain``:
    the longest way from the first action to the last."""

    serial: float
    balance: float
    shared: float
    chain: float


def bounds(work: Sequence[Work]) -> Bounds:
    """Of work that is given in a valid program order."""
    by_sort: dict[str, float] = {}
    for one in work:
        by_sort[one.sort] = by_sort.get(one.sort, 0.0) + one.seconds.get(one.sort, one.least)
    least = [one.least for one in work]
    ranks = upward_ranks(least, _successors(predecessors([one.action for one in work])))
    return Bounds(sum(by_sort.values()), max(by_sort.values(), default=0.0), sum(least) / 2, max(ranks, default=0.0))


def _successors(before: Sequence[Sequence[int]]) -> list[list[int]]:
    after: list[list[int]] = [[] for _ in before]
    for place, earlier in enumerate(before):
        for one in earlier:
            after[one].append(place)
    return after


def _listed(work: Sequence[Work], before: Sequence[Sequence[int]], handover: float, *, own_first: bool) -> Layout:
    after = _successors(before)
    ranks = upward_ranks([one.least for one in work], after)
    lanes = sorted({lane for one in work for lane in one.seconds})
    waits = [len(earlier) for earlier in before]
    start, end = [0.0] * len(work), [0.0] * len(work)
    lane_of = [DRIVER] * len(work)
    queues: dict[tuple[Sort, frozenset[str]], _Queue] = {}  # ready, by sort and the lanes that can do it
    coming = [
        (0.0, place) for place, earlier in enumerate(before) if not earlier
    ]  # a heap by the seconds of being ready
    free = dict.fromkeys(lanes, 0.0)
    now, left = 0.0, len(work)

    def place_at(place: int, lane: str, at: float) -> None:
        lane_of[place], start[place] = lane, at
        end[place] = at + work[place].seconds.get(lane, 0.0)
        for later in after[place]:
            waits[later] -= 1
            if not waits[later]:
                heappush(coming, (max(end[p] for p in before[later]), later))

    def worthwhile(place: int, lane: str) -> bool:
        """Whether no other lane would be through with it earlier, though it is busy now."""
        seconds = work[place].seconds
        return all(now + seconds[lane] <= max(free[other], now) + spent for other, spent in seconds.items())

    while left:
        while coming and coming[0][0] <= now:
            at, place = heappop(coming)
            if work[place].seconds:
                key = (work[place].sort, frozenset(work[place].seconds))
                heappush(queues.setdefault(key, []), (-ranks[place], place))
            else:
                place_at(place, DRIVER, at)
                left -= 1
        taken = 0
        for lane in lanes:
            queue = _best(queues, lane, own_first, worthwhile) if free[lane] <= now else None
            if queue is not None:
                place = heappop(queue)[1]
                crossing = (end[p] + handover for p in before[place] if lane_of[p] not in (lane, DRIVER))
                place_at(place, lane, max(now, *crossing, 0.0))
                free[lane] = end[place]
                taken += 1
        left -= taken
        if left and not taken:
            later = [at for at, _ in coming[:1]] + [at for at in free.values() if at > now]
            if not later:
                raise InternalError(
                    f"no lane can do {next(w.action.label for w, n in zip(work, waits, strict=True) if n)}"
                )
            now = min(later)
    order = sorted(range(len(work)), key=lambda place: (start[place], end[place], place))
    return Layout(
        tuple((lane_of[p], work[p].action) for p in order), tuple(start[p] for p in order), tuple(end[p] for p in order)
    )


def _best(
    queues: Mapping[tuple[Sort, frozenset[str]], _Queue],
    lane: str,
    own_first: bool,
    worthwhile: Callable[[int, str], bool],
) -> _Queue | None:
    """The queue from which ``lane`` takes next."""
    able = [
        (own_first and sort != lane, queue[0], queue)
        for (sort, on), queue in queues.items()
        if queue and lane in on and worthwhile(queue[0][1], lane)
    ]
    return min(able, key=lambda one: one[:2])[2] if able else None
