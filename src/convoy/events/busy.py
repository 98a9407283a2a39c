"""How busy each lane was: the summary of a run or an epoch."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from convoy.events.event import Event


class BusyShares:
    """A sink that sums the seconds of actions per lane."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        if event.kind != "action":
            return
        with self._lock:
            self._seconds[event.lane] = self._seconds.get(event.lane, 0.0) + (event.end - event.start)

    def take(self, elapsed_seconds: float) -> dict[str, float]:
        """Lane → share of ``elapsed_seconds`` that it worked since the last call (or the start); starts anew."""
        with self._lock:
            seconds, self._seconds = self._seconds, dict.fromkeys(self._seconds, 0.0)
        if elapsed_seconds <= 0:
            return {}
        return {lane: spent / elapsed_seconds for lane, spent in sorted(seconds.items())}


def busy_table(shares: Mapping[str, float], width: int = 40) -> str:
    """One line per lane: name, bar, percent."""
    longest = max((len(lane) for lane in shares), default=0)
    lines = []
    for lane, share in shares.items():
        filled = round(min(max(share, 0.0), 1.0) * width)
        lines.append(f"{lane:<{longest}}  {'#' * filled}{'.' * (width - filled)}  {share:6.1%}")
    return "\n".join(lines)
