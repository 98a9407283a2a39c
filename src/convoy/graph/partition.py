"""Cuts a row of costs into contiguous parts of nearly equal load.

    costs      3   1 | 4   1 | 5        allowed places: before 1, 2, 3, 4
    positions  0   1   2   3   4

A cut at position p falls just before element p. The greatest load is as small as it can be (dynamic programme over
prefix sums, O(parts · places²)); among equals the sum of crossing costs is smallest, among these the cuts lie earliest.
Pure functions of numbers; they know nothing of graphs.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from convoy.errors import OptionError

Memory: TypeAlias = "Callable[[int, int, int], float] | NDArray[Any]"
"""``memory(start, stop, part)``: what part number ``part`` (from 0) needs if it holds elements [start, stop). Or an
array ``memory[start, stop]`` of all positions, the same for every part."""

_Floats: TypeAlias = "NDArray[np.float64]"
_Range: TypeAlias = tuple[int, int]
_START: _Range = (0, 0)


@dataclass(frozen=True, slots=True)
class Partition:
    """``cuts`` are the positions of each part's first element, without the first part's. ``loads`` are the parts'
    seconds, crossing costs and the speed of the worker included, ``bottleneck`` the greatest of them. ``ideal`` is
    the load if the costs could be shared out without remainder and crossing were free."""

    cuts: tuple[int, ...]
    loads: tuple[float, ...]
    bottleneck: float
    ideal: float

    @property
    def efficiency(self) -> float:
        """ideal / bottleneck: 1 for a perfect balance."""
        return self.ideal / self.bottleneck if self.bottleneck else 1.0


def partition(
    costs: Sequence[float],
    allowed: Sequence[int],
    parts: int,
    *,
    crossing: Mapping[int, float] | None = None,
    speeds: Sequence[float] | None = None,
    memory: Memory | None = None,
    limit: float | Sequence[float] = math.inf,
) -> Partition:
    """The partition of ``costs`` into ``parts`` whose greatest load is smallest.

    ``allowed``: positions at which a cut may fall. ``crossing``: position → seconds that a cut there costs both of
    its neighbours. ``speeds``: relative speed of each part's worker. ``memory``: what a part needs, at most ``limit``
    (one number, or one per part).

    Raises OptionError when there are fewer places than cuts, when no partition keeps the limit, and for costs,
    speeds or positions that make no sense.
    """
    problem = _Problem(costs, allowed, parts, crossing, speeds, memory, limit)
    found = problem.solve(problem.anywhere())
    if found is None:
        raise problem.too_big()
    return found


def nearly_optimal(
    costs: Sequence[float],
    allowed: Sequence[int],
    parts: int,
    *,
    within: float = 0.05,
    count: int = 4,
    apart: float = 0.01,
    crossing: Mapping[int, float] | None = None,
    speeds: Sequence[float] | None = None,
    memory: Memory | None = None,
    limit: float | Sequence[float] = math.inf,
) -> tuple[Partition, ...]:
    """The optimum and up to ``count`` - 1 others whose greatest load is at most 1 + ``within`` times the optimum's,
    best first.

    Any two of them differ in at least one cut by ``apart`` of the ideal load or more, so that measuring both tells
    something. Found by branching (Lawler 1972): whatever differs from a partition has a first cut that lies elsewhere,
    earlier or later, and the best with that cut there is again a partition to look at.
    """
    problem = _Problem(costs, allowed, parts, crossing, speeds, memory, limit)
    best = problem.solve(problem.anywhere())
    if best is None:
        raise problem.too_big()
    bound, step = best.bottleneck * (1.0 + within), apart * best.ideal
    heap = [(best.bottleneck, best.cuts, problem.reachable(bound), best)]
    chosen: list[Partition] = []
    visits = 8 * count  # what is too close to a chosen one costs a visit and brings nothing
    while heap and len(chosen) < count and visits:
        visits -= 1
        _, _, ranges, found = heapq.heappop(heap)
        if all(problem.distance(found.cuts, other.cuts) >= step for other in chosen):
            chosen.append(found)
        for child in problem.branches(ranges, found.cuts, step):
            next_best = problem.solve(child, bound)
            if next_best is not None:
                heapq.heappush(heap, (next_best.bottleneck, next_best.cuts, child, next_best))
    return tuple(chosen)


class _Problem:
    """The numbers of one question. Index i of a place: 0 is the beginning, the last one the end."""

    def __init__(
        self,
        costs: Sequence[float],
        allowed: Sequence[int],
        parts: int,
        crossing: Mapping[int, float] | None,
        speeds: Sequence[float] | None,
        memory: Memory | None,
        limit: float | Sequence[float],
    ) -> None:
        self.parts = parts
        places = sorted(set(allowed))
        self._check(costs, places, speeds, limit, crossing)
        self.places = [0, *places, len(costs)]
        self.prefix = np.concatenate(([0.0], np.cumsum(np.asarray(costs, dtype=np.float64))))[self.places]
        self.crossing = np.array([0.0, *((crossing or {}).get(p, 0.0) for p in places), 0.0])
        self.speeds = tuple(speeds) if speeds is not None else (1.0,) * parts
        self.ideal = float(self.prefix[-1]) / sum(self.speeds)
        # work[i, j]: what the elements between places i and j cost at speed 1; no part is empty
        work = self.prefix[None, :] - self.prefix[:, None] + self.crossing[None, :] + self.crossing[:, None]
        work[np.tril_indices(len(self.places))] = np.inf
        by_speed = {speed: work / speed for speed in self.speeds}
        self.load: list[_Floats] = [by_speed[speed] for speed in self.speeds]
        self.needs: list[_Floats] | None = None
        if memory is not None:
            self.limits = (float(limit),) * parts if isinstance(limit, (int, float)) else tuple(limit)
            self.needs = [self._needs(memory, part) for part in range(parts)]
            self.load = [
                np.where(needs <= bound, load, np.inf)
                for load, needs, bound in zip(self.load, self.needs, self.limits, strict=True)
            ]

    def _check(
        self,
        costs: Sequence[float],
        places: Sequence[int],
        speeds: Sequence[float] | None,
        limit: float | Sequence[float],
        crossing: Mapping[int, float] | None,
    ) -> None:
        if self.parts < 1:
            raise OptionError(f"{self.parts} parts are asked for", hint="ask for 1 or more")
        if self.parts > len(places) + 1:
            raise OptionError(
                f"{self.parts} stages need {self.parts - 1} cuts, but the model can be cut at {len(places)} "
                f"place{'s' * (len(places) != 1)} only",
                hint=f"ask for at most {len(places) + 1}",
            )
        if places and not 0 < places[0] <= places[-1] < len(costs):
            wrong = places[0] if places[0] <= 0 else places[-1]
            raise OptionError(
                f"a cut at position {wrong} leaves a part empty", hint=f"positions go from 1 to {len(costs) - 1}"
            )
        for name, values in (("cost", costs), ("crossing cost", list((crossing or {}).values()))):
            for value in values:
                if not (math.isfinite(value) and value >= 0.0):
                    raise OptionError(f"a {name} is {value}", hint="costs are finite and not negative")
        for name, given in (("speeds", speeds), ("limits", limit if isinstance(limit, Sequence) else None)):
            if given is not None and len(given) != self.parts:
                raise OptionError(f"{len(given)} {name} are given for {self.parts} parts", hint="give one per part")
        if speeds is not None and not all(math.isfinite(s) and s > 0.0 for s in speeds):
            raise OptionError(f"speeds are {list(speeds)}", hint="a speed is a number above 0")

    def _needs(self, memory: Memory, part: int) -> _Floats:
        if isinstance(memory, np.ndarray):
            return memory[np.ix_(self.places, self.places)].astype(np.float64)
        size = len(self.places)
        needs = np.full((size, size), np.inf)
        for i, start in enumerate(self.places):
            for j in range(i + 1, size):
                needs[i, j] = memory(start, self.places[j], part)
        return needs

    def anywhere(self) -> tuple[_Range, ...]:
        """For each cut the place indices [first, last] at which it may fall."""
        last = len(self.places) - 1
        return tuple((k + 1, last - self.parts + k + 1) for k in range(self.parts - 1))

    def reachable(self, bound: float) -> tuple[_Range, ...]:
        """The same, for partitions without a load above ``bound``, of which there is one."""
        size = len(self.places)
        fits = [load <= bound for load in self.load]
        from_start, to_end = [np.arange(size) == 0], [np.arange(size) == size - 1]
        for fit in fits[:-1]:
            from_start.append(fit[from_start[-1]].any(axis=0))
        for fit in reversed(fits[1:]):
            to_end.append(fit[:, to_end[-1]].any(axis=1))
        both = [np.flatnonzero(a & b) for a, b in zip(from_start[1:], reversed(to_end[1:]), strict=True)]
        return tuple((int(places[0]), int(places[-1])) for places in both)

    def solve(self, ranges: Sequence[_Range], bound: float = math.inf) -> Partition | None:
        """The best partition with each cut in its range and no load above ``bound``; None when there is none."""
        bottleneck = self._bottleneck(self.load, ranges)
        if not (bottleneck <= bound and bottleneck < math.inf):
            return None
        cuts = self._cheapest(bottleneck, ranges)
        loads = tuple(float(self.load[k][a, b]) for k, (a, b) in enumerate(pairwise((0, *cuts, len(self.places) - 1))))
        return Partition(tuple(self.places[c] for c in cuts), loads, max(loads), self.ideal)

    def _blocks(self, weights: Sequence[_Floats], ranges: Sequence[_Range]) -> list[_Floats]:
        """Of each part's weights those whose two ends are in their ranges."""
        last = len(self.places) - 1
        ends = pairwise((_START, *ranges, (last, last)))
        return [w[a : b + 1, c : d + 1] for w, ((a, b), (c, d)) in zip(weights, ends, strict=True)]

    def _bottleneck(self, weights: Sequence[_Floats], ranges: Sequence[_Range]) -> float:
        """The least possible greatest weight: best[j] = min over i of max(best[i], weight of the part from i to j)."""
        first, *others = self._blocks(weights, ranges)
        best = first[0]
        for block in others:
            best = np.maximum(best[:, None], block).min(axis=0)
        return float(best[0])

    def _cheapest(self, bottleneck: float, ranges: Sequence[_Range]) -> tuple[int, ...]:
        """Of the partitions that reach ``bottleneck`` the one with the least crossing, then the earliest cuts."""
        last = len(self.places) - 1
        starts = (*ranges, (last, last))
        rest: _Floats = np.zeros(1)  # crossing costs of all later cuts, by the end of this part
        choices: list[NDArray[np.int64]] = []
        for block, (low, high) in zip(reversed(self._blocks(self.load, ranges)), reversed(starts), strict=True):
            onward = self.crossing[low : high + 1] + rest
            total = np.where(block <= bottleneck, onward[None, :], np.inf)
            choice = total.argmin(axis=1)  # the first of equals: the earliest
            choices.append(choice)
            rest = total[np.arange(len(choice)), choice]
        cuts, at = list[int](), 0
        for choice, (low, _) in zip(reversed(choices), starts, strict=True):
            at = int(choice[at])
            cuts.append(low + at)
        return tuple(cuts[:-1])

    def distance(self, one: Sequence[int], other: Sequence[int]) -> float:
        """The cost between the two places of the cut that differs most."""
        index = {place: i for i, place in enumerate(self.places)}
        between = (float(self.prefix[index[a]] - self.prefix[index[b]]) for a, b in zip(one, other, strict=True))
        return max(map(abs, between), default=0.0)

    def branches(self, ranges: Sequence[_Range], cuts: Sequence[int], step: float) -> list[tuple[_Range, ...]]:
        """Disjoint ranges for what differs from ``cuts`` by ``step`` or more: cut k to the left or to the right, the
        cuts before it close to where they are."""
        found: list[tuple[_Range, ...]] = []
        close: list[_Range] = []
        for k, (cut, (low, high)) in enumerate(zip(cuts, ranges, strict=True)):
            at = self.places.index(cut)
            left = right = at
            while left >= low and (left == at or self.prefix[at] - self.prefix[left] < step):
                left -= 1
            while right <= high and (right == at or self.prefix[right] - self.prefix[at] < step):
                right += 1
            for moved in ((low, left), (right, high)):
                if moved[0] <= moved[1]:
                    found.append((*close, moved, *ranges[k + 1 :]))
            close.append((left + 1, right - 1))
        return found

    def too_big(self) -> OptionError:
        """No partition keeps the limit: how much the least demanding one needs."""
        if self.needs is None:
            return OptionError("the costs cannot be partitioned", hint="see whether a cost is infinite")
        over = [needs - bound for needs, bound in zip(self.needs, self.limits, strict=True)]
        least = self._bottleneck(over, self.anywhere())
        return OptionError(
            f"no partition into {self.parts} stages keeps each within its limit of {_amounts(self.limits)}: the best "
            f"is {least:,.0f} above it",
            hint="raise the limit, take more stages or a smaller batch",
        )


def _amounts(values: Sequence[Any]) -> str:
    different = dict.fromkeys(f"{value:,.0f}" for value in values)
    return ", ".join(different)
