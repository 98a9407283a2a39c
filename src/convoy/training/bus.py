"""From what happens to those who listen: the clock of a run, sampling, files, sinks and callbacks."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from convoy.events.busy import BusyShares
from convoy.events.event import Event, EventKind, Sink
from convoy.events.fan_out import fan_out
from convoy.events.window import Window
from convoy.schedule.decision import Decision


class Bus:
    """Takes events of the driver (``emit``) and of the strategy (``from_step``), hands them to sinks and callbacks.

    Sinks are called where the event happens, also in worker threads. Callbacks are called in the driver's thread and
    between its own doings only: what the strategy reports waits for the driver's next event.
    """

    def __init__(self, sinks: Iterable[Sink], callbacks: Iterable[Sink] = (), *, trace: bool = False) -> None:
        self.busy = BusyShares()
        self._callbacks = tuple(callbacks)
        self._waiting: deque[Event] = deque()
        self._calling = False
        self._out = Window(fan_out([*sinks, self._to_callbacks]), trace=trace)
        self._began = time.perf_counter()

    def now(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self._began

    def emit(
        self,
        kind: EventKind,
        name: str,
        data: Mapping[str, Any],
        *,
        batch: int = -1,
        start: float | None = None,
    ) -> None:
        """An event of the driver, ending now."""
        end = self.now()
        self._out(Event(kind, name, end if start is None else start, end, "", batch, data))
        if self._calling:  # a callback made this event: it comes after those that wait
            return
        self._calling = True
        try:
            while self._waiting:
                event = self._waiting.popleft()
                for callback in self._callbacks:
                    callback(event)
        finally:
            self._calling = False

    def decide(self, decision: Decision) -> None:
        self.emit("decision", decision.name, {"cause": decision.cause, **decision.data}, batch=decision.batch)

    def from_step(self, event: Event) -> None:
        """The sink for a bound strategy. Its times are those of ``time.perf_counter``; without any, it is now."""
        if event.start or event.end:
            start, end = event.start - self._began, event.end - self._began
        else:  # a moment: now
            start = end = self.now()
        moved = Event(event.kind, event.name, start, end, event.lane, event.batch, event.data)
        self.busy(moved)
        self._out(moved)

    def _to_callbacks(self, event: Event) -> None:
        if self._callbacks:
            self._waiting.append(event)
