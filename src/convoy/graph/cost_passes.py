"""From several timed passes over the same nodes to one time for each. Pure functions of numbers.

Another program may disturb a machine in three ways, and each has its remedy: a bad minute makes whole passes slow (they
are dropped, or brought to the same scale as the others), drift makes each pass a little slower than the one before (the
same scale again), a spike hits single nodes (a low quantile over the passes, since disturbance only ever adds). What
remains is told by the disagreement of two halves of the passes; nodes that stay uncertain are drawn towards what
operations and bytes let expect.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from convoy.graph.timed_pass import Times

_Floats: TypeAlias = "NDArray[np.float64]"

DISTURBED = 1.3
"""A pass that takes this many times the best one is dropped."""
FEWEST = 3
"""So many passes are kept in any case: one alone would say nothing of how far its nodes can be trusted."""
QUANTILE = 0.25
"""Of the kept passes, the quantile that stands for a node: low, since disturbance only ever adds."""


@dataclass(frozen=True, slots=True)
class Typical:
    """Seconds of each node, forward and backward; ``uncertainty`` is the relative error that their scatter over the
    passes leaves; ``dropped`` passes were left out as disturbed, ``kept`` are the others."""

    forward: tuple[float, ...]
    backward: tuple[float, ...]
    uncertainty: tuple[float, ...]
    kept: tuple[Times, ...]
    dropped: int


def robust(values: Sequence[float]) -> float:
    """The low quantile that stands for several measurements of one thing."""
    return float(np.quantile(values, QUANTILE))


def undisturbed(passes: Sequence[Times]) -> tuple[list[Times], int]:
    """The passes that took at most ``DISTURBED`` times as long as the best one, but at least the ``FEWEST`` best, and
    how many were left out."""
    totals = sorted(p.total for p in passes)
    bound = max(DISTURBED * totals[0], totals[min(FEWEST, len(totals)) - 1])
    kept = [p for p in passes if p.total <= bound]
    return kept, len(passes) - len(kept)


def typical(passes: Sequence[Times]) -> Typical:
    """What each node takes, from at least one pass."""
    kept, dropped = undisturbed(passes)
    times = np.array([[*p.forward, *p.backward] for p in kept])
    count = times.shape[1] // 2
    scales = _scales(times)
    level = robust(scales.tolist())
    alike = times / scales[:, None]
    low = np.quantile(alike, QUANTILE, axis=0) * level
    sums = alike[:, :count] + alike[:, count:]
    quartiles = np.quantile(sums, (0.25, 0.5, 0.75), axis=0)
    scatter = np.divide(quartiles[2] - quartiles[0], quartiles[1], out=np.zeros(count), where=quartiles[1] > 0)
    uncertain = scatter / 1.35 / np.sqrt(len(kept)) if len(kept) > 1 else np.ones(count)
    return Typical(
        tuple(low[:count].tolist()), tuple(low[count:].tolist()), tuple(uncertain.tolist()), tuple(kept), dropped
    )


def _scales(times: _Floats) -> _Floats:
    """How slow each pass was as a whole: the median, by cost, of its nodes' times over their low quantiles. Spikes do
    not move it, which a sum would let them."""
    base = np.quantile(times, QUANTILE, axis=0)
    costly = base > 0
    if len(times) == 1 or not costly.any():
        return np.ones(len(times))
    base = base[costly]
    return np.array([_weighted_median(row[costly] / base, base) for row in times])


def _weighted_median(values: _Floats, weights: _Floats) -> float:
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(reached, reached[-1] / 2)])


def disagreement(passes: Sequence[Times]) -> float:
    """How far two halves of the passes, every other one, disagree on where a share of the work ends: the greatest
    distance of their running sums, as a share of the whole. No cut moves by more because of it. 1 below four passes.
    """
    if len(passes) < 4:
        return 1.0
    halves = (typical(passes[0::2]), typical(passes[1::2]))
    curves = [np.cumsum(np.add(half.forward, half.backward)) for half in halves]
    if any(curve[-1] <= 0 for curve in curves):
        return 0.0
    return float(np.max(np.abs(curves[0] / curves[0][-1] - curves[1] / curves[1][-1])))


def drawn_to_prior(
    seconds: Sequence[float], uncertainty: Sequence[float], prior: Sequence[float], kinds: Sequence[str]
) -> list[float]:
    """``seconds`` of nodes, each drawn towards ``prior`` (what formulas say) the more, the less certain it is.

    The formulas are first brought to scale, kind by kind, by the median of measured over expected; how far the nodes
    of a kind scatter about it says how little the formulas are worth. Both errors are taken as relative.
    """
    known = [i for i, (s, p) in enumerate(zip(seconds, prior, strict=True)) if s > 0 and p > 0]
    logs = {i: float(np.log(seconds[i] / prior[i])) for i in known}
    by_kind: dict[str, list[float]] = defaultdict(list)
    for i in known:
        by_kind[kinds[i]].append(logs[i])
    result = list(seconds)
    for i in known:
        same = by_kind[kinds[i]]
        if len(same) < 4:  # too few to know the kind's scale from others than the node itself
            continue
        middle = float(np.median(same))
        width = max(1.4826 * float(np.median(np.abs(np.array(same) - middle))), 0.05)
        trust = width**2 / (width**2 + uncertainty[i] ** 2)
        result[i] = prior[i] * float(np.exp(trust * logs[i] + (1.0 - trust) * middle))
    return result
