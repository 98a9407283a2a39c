"""How busy other programs kept the machine meanwhile."""

from __future__ import annotations

import os
import time
from pathlib import Path

BUSY_CORES = 0.5
"""More than this that others use spoils what is measured."""


class OtherLoad:
    """From when it is made: what others used."""

    def __init__(self) -> None:
        self._used, self._own, self._began = _used_seconds(), time.process_time(), time.perf_counter()

    def cores(self) -> float | None:
        """Cores that other programs used on average; None where the system does not say."""
        after, elapsed = _used_seconds(), time.perf_counter() - self._began
        if self._used is None or after is None or elapsed <= 0:
            return None
        return max(0.0, (after - self._used - (time.process_time() - self._own)) / elapsed)


def _used_seconds() -> float | None:
    """Processor seconds that anybody used since the machine started."""
    try:
        ticks = list(map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9]))
        # All but idle and waiting for disks.
        return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None
