"""One sink that feeds several."""

from __future__ import annotations

from collections.abc import Iterable

from convoy.events.event import Event, Sink


def fan_out(sinks: Iterable[Sink]) -> Sink:
    """A sink that hands every event to each of ``sinks``, in order. Sinks of sinks come out as one loop."""
    targets = tuple(sinks)
    if len(targets) == 1:
        return targets[0]

    def spread(event: Event) -> None:
        for target in targets:
            target(event)

    return spread
