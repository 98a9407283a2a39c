"""Warnings that nobody would hear: Python's own take their place."""

from __future__ import annotations

import sys
import warnings

from convoy.errors import ConvoyWarning
from convoy.events.event import Event, Sink

_OWN = __name__.partition(".")[0]


def tell(sink: Sink | None, event: Event) -> None:
    """Hand ``event`` to ``sink``; where there is none, a warning is issued by ``issue``."""
    (issue if sink is None else sink)(event)


def issue(event: Event) -> None:
    """A sink for those who gave none: warnings become a ``ConvoyWarning`` at the line that called convoy."""
    if event.kind == "warning":
        message = str(event.data.get("message", event.name))
        warnings.warn(message, ConvoyWarning, stacklevel=_callers_level())


def _callers_level() -> int:
    """The ``stacklevel``, for our caller, of the nearest frame outside this package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == _OWN:
        level, frame = level + 1, frame.f_back
    return level
