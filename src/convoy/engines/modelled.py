"""An engine that carries out nothing: when each action of a mini-batch would start and end, in virtual time.

It takes a schedule as the real engines do: a worker's lane in program order, the pool's lane from one queue, the most
urgent ready action first. What it is given besides is what a clock would show of each action alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from convoy.engines.pool import POOL
from convoy.errors import InternalError
from convoy.schedule.recurring import Recurring, upward_ranks
from convoy.schedule.schedule import DRIVER


@dataclass(frozen=True, slots=True)
class Modelled:
    """``finish``: seconds until the last action is through. ``busy``: worker → seconds in which it works."""

    finish: float
    busy: Mapping[str, float]

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of the time in which each worker works."""
        return tuple(spent / self.finish if self.finish else 0.0 for spent in self.busy.values())


def modelled(recurring: Recurring, seconds: Sequence[float], workers: Sequence[str]) -> Modelled:
    """How long ``workers`` take for one mini-batch of ``recurring``. ``seconds``: of each action, by place; what the
    driver does takes none. Raises InternalError where the schedule cannot go on."""
    return _Run(recurring, seconds, workers).run()


class _Run:
    def __init__(self, recurring: Recurring, seconds: Sequence[float], workers: Sequence[str]) -> None:
        self._recurring, self._seconds = recurring, seconds
        self._ranks = upward_ranks(seconds, recurring.successors)
        self._left = list(recurring.waits)
        self._pool: list[tuple[float, int]] = []
        self._queues: dict[str, deque[int]] = {worker: deque() for worker in workers}
        self._running: dict[str, tuple[float, int]] = {}  # worker → when it is through with which place
        self._busy = dict.fromkeys(workers, 0.0)
        self._now = 0.0
        self._open = len(recurring.entries)

    def run(self) -> Modelled:
        for place, (lane, _) in enumerate(self._recurring.entries):
            if lane in self._queues:
                self._queues[lane].append(place)
        for place, count in enumerate(self._recurring.waits):
            if not count:
                self._ready(place)
        while self._open:
            self._start()
            if not self._running:
                raise InternalError(f"{self._open} actions are left and none can go")
            self._advance()
        return Modelled(self._now, self._busy)

    def _ready(self, place: int) -> None:
        """Nothing that ``place`` waits for is left; ``run`` calls it for the first ones, ``_done`` for the others."""
        lane = self._recurring.entries[place][0]
        if lane == DRIVER:
            self._done(place)
        elif lane == POOL:
            heappush(self._pool, (-self._ranks[place], place))

    def _done(self, place: int) -> None:
        self._open -= 1
        for after in self._recurring.successors[place]:
            self._left[after] -= 1
            if not self._left[after]:
                self._ready(after)

    def _start(self) -> None:
        for worker, queue in self._queues.items():
            if worker in self._running:
                continue
            if queue and not self._left[queue[0]]:
                place = queue.popleft()
            elif self._pool:
                place = heappop(self._pool)[1]
            else:
                continue
            self._running[worker] = (self._now + self._seconds[place], place)
            self._busy[worker] += self._seconds[place]

    def _advance(self) -> None:
        """To the end of the action that is through first."""
        self._now = min(end for end, _ in self._running.values())
        for worker, (end, place) in list(self._running.items()):
            if end <= self._now:
                del self._running[worker]
                self._done(place)
