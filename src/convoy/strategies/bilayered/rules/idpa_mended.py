"""Our repair of IDPA: costs with a fixed part, fitted robustly, and water-filling with what is held as a floor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median


@dataclass(frozen=True, slots=True)
class Cost:
    """A local pass over n samples takes ``fixed + per_sample·n`` seconds (α_j and β_j)."""

    fixed: float
    per_sample: float

    def seconds(self, samples: float) -> float:
        return self.fixed + self.per_sample * samples


def fit_cost(measured: Sequence[tuple[int, float]]) -> Cost:
    """Cost from (samples, seconds) of the last passes; one noisy timing changes little.

    The slope is the median of the slopes between passes of different size (Theil and Sen), the fixed part the median
    of what is left. Where sizes do not differ, or the line makes no sense, the fixed part is 0 and the slope the
    median of seconds per sample of the last three passes.
    """
    slopes = [(t - s) / (n - m) for (m, s), (n, t) in combinations(measured, 2) if abs(n - m) > 0.1 * max(n, m)]
    if slopes:
        slope = median(slopes)
        fixed = median([t - slope * n for n, t in measured])
        if slope > 0 and fixed >= 0:
            return Cost(fixed, slope)
    return Cost(0.0, max(median([t / n for n, t in list(measured)[-3:]]), 1e-12))


def water_fill(total: float, costs: Sequence[Cost], held: Sequence[float] | None = None) -> tuple[float, ...]:
    """How many of ``total`` samples each node holds so that all end a pass at the same time, as far as can be.

    T* = (R + Σ α_j/β_j)/Σ(1/β_j) over the nodes with T* > α_j; a node keeps at least the ``held`` samples it has
    (clamped, then solved again for the rest). ``total`` must not be below Σ held.
    """
    floors = [0.0] * len(costs) if held is None else [float(n) for n in held]
    clamped: set[int] = set()
    while True:
        free = [j for j in range(len(costs)) if j not in clamped]
        rest = total - math.fsum(floors[j] for j in clamped)
        if not free:
            return tuple(floors)
        level = (rest + math.fsum(costs[j].fixed / costs[j].per_sample for j in free)) / math.fsum(
            1 / costs[j].per_sample for j in free
        )
        shares = {j: (level - costs[j].fixed) / costs[j].per_sample for j in free}
        low = {j for j in free if shares[j] < floors[j]}
        if not low:
            return tuple(shares.get(j, floors[j]) for j in range(len(costs)))
        clamped |= low


def gain(costs: Sequence[Cost], held: Sequence[float]) -> float:
    """By which share the slowest node's pass would get shorter if the samples held were shared out anew, 0 … 1."""
    now = max(cost.seconds(n) if n else 0.0 for cost, n in zip(costs, held, strict=True))
    filled = water_fill(math.fsum(held), costs)
    best = max(cost.seconds(n) if n else 0.0 for cost, n in zip(costs, filled, strict=True))
    return max(0.0, 1 - best / now) if now > 0 else 0.0
