"""An engine that carries out nothing: when each action of a mini-batch would start and end, in virtual time.

It takes a schedule as the real engines do: a worker's lane in program order, the pool's lane from one queue, the most
urgent ready action first. What it is given besides is what a clock would show: seconds of each action alone, how much
slower workers are in company, and what handing an action over costs.
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


def modelled(
    recurring: Recurring,
    seconds: Sequence[float],
    workers: Sequence[str],
    *,
    company: float = 1.0,
    dispatch: float = 0.0,
    handover: float = 0.0,
) -> Modelled:
    """How long ``workers`` take for one mini-batch of ``recurring``.

    ``seconds``: of each action, by place, with a machine of its own; the driver's take none. ``company``: by which
    factor everything is slower while all workers work, in proportion to how many others do. ``dispatch``: seconds that
    each action takes besides; ``handover``: until a worker that had to wait for another one goes on.

    Raises InternalError where the schedule cannot go on.
    """
    return _Run(recurring, seconds, workers, company, dispatch, handover).run()


class _Run:
    def __init__(
        self, recurring: Recurring, seconds: Sequence[float], workers: Sequence[str], company: float, dispatch: float,
        handover: float,
    ) -> None:  # fmt: skip
        self._recurring, self._seconds = recurring, seconds
        self._company, self._dispatch, self._handover = company, dispatch, handover
        self._ranks = upward_ranks(seconds, recurring.successors)
        self._left = list(recurring.waits)
        self._pool: list[tuple[float, int]] = []
        self._queues: dict[str, deque[int]] = {worker: deque() for worker in workers}
        self._running: dict[str, list[float]] = {}  # worker → [place, seconds left]
        self._busy = dict.fromkeys(workers, 0.0)
        self._waited = dict.fromkeys(workers, False)
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
                self._waited[worker] = True
                continue
            wait = self._handover if self._waited[worker] else 0.0
            self._running[worker] = [place, self._seconds[place] + self._dispatch + wait]
            self._waited[worker] = False

    def _advance(self) -> None:
        """To the end of the action that is through first."""
        others = max(1, len(self._queues) - 1)
        slower = 1.0 + (self._company - 1.0) * (len(self._running) - 1) / others
        least = min(left for _, left in self._running.values())
        self._now += least * slower
        ended = []
        for worker, state in self._running.items():
            self._busy[worker] += least * slower
            state[1] -= least
            if state[1] <= 1e-12:
                ended.append(worker)
        for worker in ended:
            self._done(int(self._running.pop(worker)[0]))
