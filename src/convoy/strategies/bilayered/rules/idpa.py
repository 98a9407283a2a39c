"""IDPA, incremental data partitioning and allocation (Chen et al. 2019), as reconstructed from the publication."""

from __future__ import annotations

import math
from collections.abc import Sequence


def first_batch(size: int, speeds: Sequence[float]) -> tuple[float, ...]:
    """Samples of the first allocation batch for each node: n_j = size·μ_j/Σμ, by nominal speeds."""
    return tuple(size * speed / math.fsum(speeds) for speed in speeds)


def later_batch(total: int, seconds: Sequence[float], held: Sequence[int]) -> tuple[float, ...]:
    """Samples of a later batch: n_j = T*/t_j − held_j with T* = total/Σ(1/t_j).

    ``total``: all samples to be held after it, (a+1)·N/A; ``seconds``: per sample, transfer included; ``held``: what
    each node holds already. The increments sum to total − Σ held; one may be negative, which is a flaw of the rule.
    """
    pace = total / math.fsum(1 / t for t in seconds)
    return tuple(pace / t - n for t, n in zip(seconds, held, strict=True))
