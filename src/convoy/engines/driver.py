"""How many intra-op threads the driver has while its workers are busy: one.

A parallel region leaves its team of OpenMP threads spinning for some milliseconds, in case another follows at once. In
the driver's thread, bringing images into another memory format is enough of a region, and the team then takes the
workers' cores: 4 to 6 ms of steps of 14 to 90 ms, on two cores (``benchmarks/driver_threads``).
"""

from __future__ import annotations

import threading

import torch

from convoy.engines.engine import Engine


class _Thread(threading.local):
    """Of one thread: what it had before it was held at one, and who holds it there."""

    def __init__(self) -> None:
        self.before: int | None = None
        self.holders: set[int] = set()

    def settle(self) -> None:
        """Give the thread its number back where nobody holds it any more, unless the user gave it another since."""
        if self.before is None or self.holders:
            return
        if torch.get_num_threads() == 1:
            torch.set_num_threads(self.before)
        self.before = None


_here = _Thread()


def callers_threads() -> int:
    """The intra-op threads that the calling thread has, or had before a step that is in flight took them."""
    _here.settle()
    return torch.get_num_threads() if _here.before is None else _here.before


class OneThread:
    """Holds the calling thread at one intra-op thread. Several may do so at once; when the last one releases it, the
    thread has again what it had before the first. Both methods may be called twice."""

    def __init__(self) -> None:
        self._holders: set[int] | None = None  # of the thread that is held

    def hold(self, engine: Engine | None) -> None:
        """From now on one thread, if ``engine`` works beside the driver."""
        if self._holders is not None or engine is None or not engine.beside:
            return
        _here.settle()
        if _here.before is None:
            _here.before = torch.get_num_threads()
        self._holders = _here.holders
        self._holders.add(id(self))
        torch.set_num_threads(1)

    def release(self) -> None:
        """Where another thread calls this (a step that was dropped is collected anywhere), the one that was held gets
        its number back the next time that convoy asks there."""
        if self._holders is not None:
            self._holders.discard(id(self))
            self._holders = None
        _here.settle()
