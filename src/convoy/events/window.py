"""Actions in sampled windows, so that the events of a hundred epochs stay small."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

from convoy.events.event import Event, Sink


class Window:
    """A sink before a sink: passes the ``first`` actions of every lane and those of every ``every``-th mini-batch.

    What the actions between two steps came to is added to the later ``step`` event as
    ``lanes``: lane → ``actions``, ``seconds``, ``bytes``. Everything but actions passes. With ``trace`` all pass.
    """

    def __init__(self, sink: Sink, *, trace: bool = False, first: int = 64, every: int = 50) -> None:
        self._sink = sink
        self._trace = trace
        self._first = first
        self._every = every
        self._seen: dict[str, int] = {}
        self._sums: dict[str, list[float]] = {}
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        if event.kind == "action":
            if self._count(event) or self._trace:
                self._sink(event)
        elif event.kind == "step":
            self._sink(self._with_sums(event))
        else:
            self._sink(event)

    def _count(self, event: Event) -> bool:
        """Add the action to the sums; whether it falls into a window."""
        lane = event.lane
        with self._lock:
            seen = self._seen.get(lane, 0)
            self._seen[lane] = seen + 1
            sums = self._sums.setdefault(lane, [0, 0.0, 0])
            sums[0] += 1
            sums[1] += event.end - event.start
            sums[2] += event.data.get("bytes", 0)
        return seen < self._first or event.batch % self._every == 0

    def _with_sums(self, event: Event) -> Event:
        with self._lock:
            sums, self._sums = self._sums, {}
        if not sums:
            return event
        lanes: dict[str, Any] = {
            lane: {"actions": int(actions), "seconds": round(seconds, 6), "bytes": int(moved)}
            for lane, (actions, seconds, moved) in sorted(sums.items())
        }
        return replace(event, data={**event.data, "lanes": lanes})
