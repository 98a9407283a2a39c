"""Ctrl-C between two steps instead of in the middle of one, and at once where nothing has begun.

A KeyboardInterrupt raised while actions are being submitted would leave half a batch in the schedule, and what is in
flight could not be drained any more. Inside ``uninterrupted()`` it is kept back until the block ends. Inside
``interruptible()`` nothing is half done (a strategy that measures before it plans): whoever holds Ctrl-C back otherwise
need not, and raises ``Untouched``.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self


class uninterrupted:
    """Context that delays SIGINT in the main thread; does nothing in others, where Python delivers no signals."""

    def __enter__(self) -> Self:
        self._pending: tuple[int, FrameType | None] | None = None
        self._previous: Any = None
        main = threading.current_thread() is threading.main_thread()
        self._active = main and signal.getsignal(signal.SIGINT) is not None  # None: set by C, could not be put back
        if self._active:
            self._previous = signal.signal(signal.SIGINT, self._keep)
        return self

    def __exit__(self, *exc: object) -> None:
        if not self._active:
            return
        signal.signal(signal.SIGINT, self._previous)
        if self._pending is None:
            return
        if callable(self._previous):
            self._previous(*self._pending)
        else:  # the system's own way of dealing with it
            signal.raise_signal(self._pending[0])

    def _keep(self, number: int, frame: FrameType | None) -> None:
        self._pending = (number, frame)


class Untouched(KeyboardInterrupt):
    """Ctrl-C before the mini-batch had any effect."""


class interruptible:
    """Context in which a step has changed nothing yet. Counts in the main thread only, where signals arrive."""

    depth = 0

    def __enter__(self) -> Self:
        self._counts = threading.current_thread() is threading.main_thread()
        interruptible.depth += self._counts
        return self

    def __exit__(self, *exc: object) -> None:
        interruptible.depth -= self._counts
