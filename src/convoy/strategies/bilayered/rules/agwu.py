"""AGWU, the asynchronous global weight update (Chen et al. 2019), as reconstructed from the publication."""

from __future__ import annotations

import math
from collections.abc import Sequence


def attenuation(base: int, bases: Sequence[int], version: int) -> float:
    """γ = e^(k/(i−1)) / Σ_l e^(k_l/(i−1)) for a push from base version k that makes version i.

    ``bases``: those of all working nodes, the pushing one included. For i = 1 the exponents are 0/0; all bases are 0
    then, and every node gets the same share.
    """
    if version <= 1:
        return 1 / len(bases)
    scale = version - 1
    return math.exp((base - scale) / scale) / math.fsum(math.exp((k - scale) / scale) for k in bases)


def agwu(base: int, bases: Sequence[int], version: int, quality: float) -> float:
    """The factor of the node's delta: γ·Q_j. W ← W + γ·Q_j·(W_j − W^(k))."""
    return attenuation(base, bases, version) * quality
