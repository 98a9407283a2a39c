"""Means with their intervals, and values that do not fit."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

# Two-sided 95 % quantiles of Student's t by degrees of freedom, 1 to 30.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_NORMAL = 1.96
FEWEST = 3  # values that an interval is given for: that of two, 12.7 standard errors, says nothing
_OUTLIER = 3.5  # of the modified z-score (Iglewicz and Hoaglin 1993)


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and half the width of its 95 % interval (Student's t); None for the latter below ``FEWEST`` values."""
    mean = statistics.fmean(values)
    count = len(values)
    if count < FEWEST:
        return mean, None
    quantile = _T[count - 2] if count - 2 < len(_T) else _NORMAL
    return mean, quantile * statistics.stdev(values) / math.sqrt(count)


def ratio(pairs: Sequence[tuple[float, float]]) -> tuple[float, tuple[float, float] | None]:
    """The geometric mean of a/b over the pairs (a, b), all above 0, and its 95 % interval; None for the latter below
    ``FEWEST`` pairs."""
    mean, half = interval([math.log(a / b) for a, b in pairs])
    # More than a factor of e**50 is no statement any more, and would not fit a float for long.
    return math.exp(mean), None if half is None else (math.exp(mean - min(half, 50)), math.exp(mean + min(half, 50)))


def outliers(values: Sequence[float]) -> list[int]:
    """The places of values that are far above the others: modified z-score above 3.5, and by a fifth at least."""
    if len(values) < 4:
        return []
    middle = statistics.median(values)
    spread = statistics.median(abs(value - middle) for value in values)
    scale = spread / 0.6745 if spread > 0 else middle * 0.01
    return [i for i, v in enumerate(values) if v > 1.2 * middle and (v - middle) / scale > _OUTLIER]
