"""Pieces of work that run one at a time, each in a thread of its own, and hand over to each other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from convoy.training.random_state import random_state, restore_random_state

T = TypeVar("T")
_LOOK_SECONDS = 0.2  # between two looks whether someone wants the work to stop


def order(items: Sequence[T], turn: int) -> list[T]:
    """``items`` rotated by ``turn``: over as many rounds as there are items each is first, second, … once."""
    first = turn % len(items) if items else 0
    return [*items[first:], *items[:first]]


class Paused:
    """Work that stops at every ``pause`` until it gets its next turn.

    ``work(self)`` runs in a thread of its own, but only inside ``turn``. It calls ``pause()``, which ends the turn and
    returns whether to go on, and may set ``hurry`` to what makes it come to its next pause, or its end, sooner. The
    global random generators are the work's own: what others draw between its turns does not change what it draws.
    ``error`` is what it raised.
    """

    def __init__(self, name: str, work: Callable[[Paused], None], random: Any) -> None:
        self.error: BaseException | None = None
        self.hurry: Callable[[], object] = lambda: None
        self.over = False
        self._work = work
        self._random = random
        self._go = threading.Event()
        self._idle = threading.Event()
        self._stopping = False
        self._started = False
        self._thread = threading.Thread(target=self._run, name=f"convoy compare {name}", daemon=True)

    def turn(self, wanted: Callable[[], bool] = lambda: False) -> bool:
        """Let it work up to its next pause; whether there is more to come. Once ``wanted()`` says so, it is hurried."""
        if self.over:
            return False
        outside = random_state()
        restore_random_state(self._random)
        self._idle.clear()
        try:
            if not self._started:
                self._started = True
                self._thread.start()
            self._go.set()
            while not self._idle.wait(_LOOK_SECONDS):
                if wanted():
                    self._end_soon()
        except BaseException:
            self._end_soon()
            self._idle.wait()
            raise
        finally:
            self._random = random_state()
            restore_random_state(outside)
        if self.over:
            self._thread.join()
        return not self.over

    def stop(self) -> None:
        """Wait for its end; ``pause`` says False from now on."""
        self._stopping = True
        if not self._started:
            self.over = True
        while not self.over:
            self.turn(lambda: True)

    def pause(self) -> bool:
        """Called by the work: the end of its turn. Returns, with the next turn, whether to go on."""
        self._go.clear()
        self._idle.set()
        self._go.wait()
        return not self._stopping

    def _end_soon(self) -> None:
        self._stopping = True
        self.hurry()

    def _run(self) -> None:
        self._go.wait()
        try:
            self._work(self)
        except BaseException as error:
            self.error = error
        finally:
            self.over = True
            self._idle.set()
