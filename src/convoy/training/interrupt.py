"""Ctrl-C, held back until a mini-batch is through, so that what is saved is whole."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Self

from convoy.engines.interrupts import Untouched, interruptible


class Interrupt:
    """While entered, the first Ctrl-C only sets ``requested``; the second raises KeyboardInterrupt at once. So does the
    first where a step is ``interruptible`` (as Untouched).

    Does nothing outside the main thread or where the program has a SIGINT handler of its own.
    """

    def __init__(self) -> None:
        self.requested = False
        self._installed = False

    def __enter__(self) -> Self:
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._handle)
            self._installed = True
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if interruptible.depth:
            raise Untouched
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed."""
        if self.requested:
            raise KeyboardInterrupt

    def __exit__(self, *exc: object) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._installed = False
