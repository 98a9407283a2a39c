"""SGWU, the synchronous global weight update (Chen et al. 2019), as reconstructed from the publication."""

from __future__ import annotations

import math
from collections.abc import Sequence


def sgwu(qualities: Sequence[float]) -> tuple[float, ...]:
    """The weight of each node's weights, Q_j/ΣQ: W = Σ W_j·Q_j/ΣQ. Equal ones where no node got anything right."""
    total = math.fsum(qualities)
    if total <= 0:
        return (1 / len(qualities),) * len(qualities)
    return tuple(quality / total for quality in qualities)
