"""The driver's clock: seconds in which it looked."""

from __future__ import annotations

import time
from collections.abc import Callable

STRIDE = 2.0
"""Seconds between two looks that count at most: a machine that slept does not find every lease run out."""


class Clock:
    """``now`` stands still between ``look``s. ``steady``: any clock that never goes back."""

    def __init__(self, now: float = 0.0, steady: Callable[[], float] = time.monotonic) -> None:
        self.now, self._steady = now, steady
        self._looked = steady()

    def look(self) -> float:
        """The time now."""
        seen = self._steady()
        self.now += min(max(seen - self._looked, 0.0), STRIDE)
        self._looked = seen
        return self.now
