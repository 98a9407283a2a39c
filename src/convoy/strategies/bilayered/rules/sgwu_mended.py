"""Our repair of SGWU, which heeds how many samples a node trained; without quality it is local SGD."""

from __future__ import annotations

import math
from collections.abc import Sequence

from convoy.strategies.bilayered.rules.agwu_mended import bounded_quality


def sgwu_mended(samples: Sequence[int], qualities: Sequence[float] | None = None) -> tuple[float, ...]:
    """Weights in proportion to n_j·clip(Q_j/mean Q, ½, 2), summing to 1.

    Without ``qualities``: n_j/Σn, which is local SGD with weighted averaging (FedAvg, McMahan et al. 2017).
    """
    known = list(qualities or ())
    raw = [n * bounded_quality(known[j] if known else None, known) for j, n in enumerate(samples)]
    total = math.fsum(raw)
    return tuple(value / total for value in raw)
