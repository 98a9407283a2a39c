"""What nodes cost when stages run side by side: the profile's costs, corrected by whole stages that were measured so.

Pure functions of numbers. A profile knows the nodes but not how stages disturb each other's caches; a measured stage
knows the sum but not the nodes. All measured stages of all partitions together give the answer: the costs closest to
the profile's whose sums agree with them (iterative proportional fitting; the corrections are factors).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import TypeAlias

import numpy as np

from convoy.graph.cost_passes import DISTURBED, QUANTILE
from convoy.graph.stage_times import Round

Cuts: TypeAlias = tuple[int, ...]
Measured: TypeAlias = Mapping[Cuts, Sequence[Round]]
"""Partition → its rounds."""

PROFILE_ERROR = 0.06
"""How far a profile is usually off, as a share, in what a stage takes beside others."""
_SWEEPS = 200


@dataclass(frozen=True, slots=True)
class Observed:
    """A partition's rounds in short: each stage's share of the sum, the sum's low quantile in seconds, the relative
    error of the shares, and the forward part of each stage's time."""

    shares: tuple[float, ...]
    seconds: float
    error: float
    forward: tuple[float, ...]


def observed(rounds: Sequence[Round]) -> Observed:
    """Rounds that were slow as a whole are left out; a spike on one worker does not move the median of the shares."""
    totals = [sum(f + b for f, b in stages) for stages in rounds]
    bound = max(DISTURBED * min(totals), sorted(totals)[min(3, len(totals)) - 1])
    kept = [(stages, total) for stages, total in zip(rounds, totals, strict=True) if total <= bound and total > 0]
    if not kept:  # stages that take no time at all
        count = len(rounds[0])
        return Observed((1 / count,) * count, 0.0, 1.0, (0.5,) * count)
    by_round = [[(f + b) / total for f, b in stages] for stages, total in kept]
    shares = [median(values) for values in zip(*by_round, strict=True)]
    scatter = max(
        _scatter(values) / share if share else 0.0
        for values, share in zip(zip(*by_round, strict=True), shares, strict=True)
    )
    error = max(scatter, 0.01) / len(kept) ** 0.5 if len(kept) > 1 else 0.1
    forward = [
        median(f / (f + b) if f + b else 0.5 for f, b in stage) for stage in zip(*(s for s, _ in kept), strict=True)
    ]
    whole = sum(shares)
    low = float(np.quantile([total for _, total in kept], QUANTILE))
    return Observed(tuple(s / whole for s in shares), low, error, tuple(forward))


def _scatter(values: Sequence[float]) -> float:
    """A standard deviation that one outlier among several does not move."""
    middle = median(values)
    return 1.4826 * median(abs(v - middle) for v in values)


def fitted(costs: Sequence[float], measured: Measured) -> list[float]:
    """``costs`` in seconds beside each other. Without measurements, as they are."""
    if not measured:
        return list(costs)
    seen = {cuts: observed(rounds) for cuts, rounds in measured.items()}
    total = float(np.quantile([o.seconds for o in seen.values()], QUANTILE))
    field = np.asarray(costs, dtype=np.float64)
    if not field.sum() or not total:
        return list(costs)
    field = field * (total / field.sum())
    wanted: list[tuple[int, int, float]] = []
    for cuts, one in seen.items():
        trust = PROFILE_ERROR**2 / (PROFILE_ERROR**2 + one.error**2)
        for (start, stop), share in zip(pairwise((0, *cuts, len(field))), one.shares, strict=True):
            planned = float(field[start:stop].sum())
            if planned > 0 and share > 0:
                wanted.append((start, stop, planned * (share * total / planned) ** trust))
    covering = np.zeros(len(field))
    for start, stop, _ in wanted:
        covering[start:stop] += 1
    for _ in range(_SWEEPS):
        change = np.zeros(len(field))
        for start, stop, goal in wanted:
            change[start:stop] += np.log(goal / field[start:stop].sum())
        step = np.divide(change, covering, out=np.zeros(len(field)), where=covering > 0)
        field = field * np.exp(step)
        if float(np.abs(step).max()) < 1e-4:
            break
    return [float(value) for value in field]
