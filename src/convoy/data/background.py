"""Make batches in a thread of its own, a few ahead of the one who takes them.

Two rules hold: the thread never outlives its consumer (leaving the block, dropping the generator and the end of the
program all close it), and whatever the thread raises reaches the consumer after the batches that came before it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class _Channel(Generic[T]):
    """A bounded queue that either side may end. ``close`` is the consumer's, ``finish`` the producer's word."""

    def __init__(self, ahead: int) -> None:
        self._ahead = ahead
        self._ready: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._finished = False
        self._error: BaseException | None = None

    def put(self, item: T) -> bool:
        """Wait for room; False when nobody wants more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._ready) < self._ahead)
            if not self._closed:
                self._ready.append(item)
                self._changed.notify_all()
            return not self._closed

    def finish(self, error: BaseException | None = None) -> None:
        with self._changed:
            self._finished, self._error = True, error
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()

    def get(self) -> T:
        """Wait for an item; StopIteration at the end, or the producer's exception."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._ready) or self._finished)
            if self._ready:
                item = self._ready.popleft()
                self._changed.notify_all()
                return item
            if self._error is not None:
                raise self._error
            raise StopIteration


def _produce(channel: _Channel[T], make: Callable[[int], T], places: range) -> None:
    try:
        for place in places:
            if not channel.put(make(place)):
                return
    except BaseException as error:  # also KeyboardInterrupt: the consumer must not wait for ever
        channel.finish(error)
    else:
        channel.finish()


def ahead(make: Callable[[int], T], places: range, count: int) -> Iterator[T]:
    """``make(place)`` for each place in order, up to ``count`` ahead of the consumer; 0 makes them when asked.

    The thread starts with the first ``next`` and ends with the generator, at the latest after the item in work.
    """
    if count == 0:
        yield from map(make, places)
        return
    channel: _Channel[T] = _Channel(count)
    thread = threading.Thread(target=_produce, args=(channel, make, places), name="convoy-data", daemon=True)
    thread.start()
    try:
        while True:
            try:
                item = channel.get()
            except StopIteration:
                return
            yield item
            del item  # the consumer decides how long a batch lives
    finally:
        channel.close()
