"""Real shares as whole samples with an exact sum: the largest remainder."""

from __future__ import annotations

import math
from collections.abc import Sequence

from convoy.errors import InternalError


def whole(shares: Sequence[float], total: int) -> tuple[int, ...]:
    """``shares``, scaled to ``total`` samples in all, as whole numbers; each is its share rounded down or up.

    Negative shares count as 0 (the published IDPA can ask for less than a node already holds); where nothing is left
    all are equal. What rounding down leaves goes to the largest remainders, the earlier of equal ones first.
    """
    if total < 0 or not shares:
        raise InternalError(f"{total} samples cannot be shared out to {len(shares)} nodes")
    kept = [share if math.isfinite(share) and share > 0 else 0.0 for share in shares]
    most = max(kept)
    kept = [share / most for share in kept] if most else [1.0] * len(kept)  # no overflow in the sum
    scale = math.fsum(kept)
    exact = [total * share / scale for share in kept]
    floors = [min(math.floor(share), total) for share in exact]
    missing = total - sum(floors)
    order = sorted(range(len(exact)), key=lambda j: (floors[j] - exact[j], j))
    for j in order[: max(missing, 0)]:
        floors[j] += 1
    for j in reversed(order):  # rounding of floats may have given one too many
        if missing >= 0:
            break
        taken = min(floors[j], -missing)
        floors[j] -= taken
        missing += taken
    return tuple(floors)
