"""Our repair of AGWU: deltas weighted by samples, bounded quality, and an attenuation that depends on the lag alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

LIMIT = 4
"""A push with a lag of more than so many times the live nodes is refused."""


def attenuation(lag: int, nodes: int) -> float:
    """s(τ) = (1 + max(0, τ − (m − 1)))^(−½): a lag of m − 1 is what m equal nodes have anyway."""
    return 1 / math.sqrt(1 + max(0, lag - (nodes - 1)))


def bounded_quality(quality: float | None, qualities: Sequence[float]) -> float:
    """q_j = Q_j/Q̄, held between ½ and 2; 1 where quality is not measured or all are 0."""
    if quality is None or not qualities:
        return 1.0
    mean = math.fsum(qualities) / len(qualities)
    return min(max(quality / mean, 0.5), 2.0) if mean > 0 else 1.0


def is_stale(lag: int, nodes: int) -> bool:
    """Whether the push is refused and the node starts again from the newest version."""
    return lag > LIMIT * nodes


def agwu_mended(
    samples: int,
    all_samples: Sequence[int],
    lag: int,
    nodes: int,
    quality: float | None = None,
    qualities: Sequence[float] = (),
) -> float:
    """The factor of the node's delta, p_j·q_j·s(τ), with p_j = n_j/Σn over the working nodes.

    ``samples``: of the pushed round; ``all_samples``: of every working node's round, the pushing one's included;
    ``lag``: pushes merged since the node's base; ``nodes``: live ones, also those without work; ``qualities``: the
    newest of every node.
    """
    share = samples / sum(all_samples)
    return share * bounded_quality(quality, qualities) * attenuation(lag, nodes)
