"""A pool of workers and one queue of ready actions: whoever is free takes the most urgent one.

The schedule's lane is ``pool``; the workers are the lanes of the options. Which worker takes which action changes no
result, because a program for a pool adds up in a fixed order. Actions of an ``Occurrence`` are urgent by its ranks
and wait by counts compiled beforehand; others go in program order and wait on the scoreboard.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from heapq import heappop, heappush

from convoy.engines.engine import closed
from convoy.engines.workers import Workers
from convoy.schedule.action import Action, Ref
from convoy.schedule.recurring import Occurrence
from convoy.schedule.schedule import DRIVER, Entry

POOL = "pool"


class PoolEngine(Workers):
    """Every action of the schedule may be taken by every worker."""

    def _prepare(self) -> None:
        self._ready = threading.Condition(self._lock)
        self._idle = 0
        self._heap: list[tuple[float, int, Action]] = []  # (− rank, order, action)
        self._order = 0
        self._parked: dict[Ref, list[tuple[int, Action]]] = {}  # what the scoreboard lets wait, by what it waits for
        self._busy: dict[str, Action] = {}
        self._awaited: Action | None = None
        self._batch: Occurrence | None = None  # what is compiled and not done yet ...
        self._left: list[int] = []  # ... how many actions each of its actions still waits for ...
        self._places: dict[Action, int] = {}  # ... and their places
        self._started: dict[str, float] = {}

    # --- the driver's side ---------------------------------------------------------------------------------

    def submit(self, entries: Iterable[Entry]) -> None:
        if isinstance(entries, Occurrence) and not self._pending:
            self._submit_compiled(entries)
            return
        if self._batch is not None:
            self.settle()
        super().submit(entries)

    def _submit_compiled(self, batch: Occurrence) -> None:
        recurring = batch.recurring
        with self._lock:
            self._check()
            if self._stop:
                raise closed()
            self._begin()
            self._recent.extend(batch[-self._options.history :])
            for name, added in recurring.advances.items():
                self._board.start_at(name, self._store.version(name) + added)
            self._batch, self._left = batch, list(recurring.waits)
            self._places = {action: place for place, (lane, action) in enumerate(batch) if lane != DRIVER}
            self._pending.update(self._places)
        entered = []
        for place, (lane, action) in enumerate(batch):
            if lane == DRIVER:
                self._carry_out(lane, action)
                entered.append(place)
        with self._lock:
            self._push([p for p in self._places.values() if not self._left[p]])
            for place in entered:
                self._push(self._released(place))

    def wait(self, action: Action) -> None:
        with self._lock:
            self._awaited = action
        super().wait(action)

    # --- with the lock held --------------------------------------------------------------------------------

    def _wake(self) -> None:
        self._changed.notify_all()
        self._ready.notify_all()

    def _enqueue(self, lane: str, action: Action) -> None:
        self._order += 1
        self._place(self._order, action)

    def _place(self, order: int, action: Action) -> None:
        """Into the queue, or aside until what it waits for is there."""
        blocker = self._board.blocker(action)
        if blocker is None:
            heappush(self._heap, (0.0, order, action))
            self._ready.notify()
        else:
            self._parked.setdefault(blocker, []).append((order, action))

    def _push(self, places: Iterable[int]) -> None:
        """Compiled actions that may go now."""
        batch = self._batch
        assert batch is not None
        ranks, added = batch.recurring.ranks, 0
        for place in places:
            heappush(self._heap, (-ranks[place], place, batch[place][1]))
            added += 1
        if added and self._idle:
            self._ready.notify(added)

    def _released(self, place: int) -> list[int]:
        """Places that wait for nothing any more, now that ``place`` is done."""
        assert self._batch is not None
        left, free = self._left, []
        for successor in self._batch.recurring.successors[place]:
            left[successor] -= 1
            if not left[successor]:
                free.append(successor)
        return free

    def _next(self, lane: str) -> Action | None:
        while not self._stop and not self._heap:
            self._idle += 1
            self._ready.wait()
            self._idle -= 1
        if self._stop:
            return None
        action = heappop(self._heap)[2]
        self._busy[lane] = action
        self._started[lane] = self._options.clock()
        return action

    def _finish(self, lane: str, action: Action) -> None:
        self._busy.pop(lane, None)
        place = self._places.get(action)
        if place is None:
            self._board.finish(action)
            for ref in (*action.reads, *action.writes):
                for order, other in self._parked.pop(ref, ()):
                    self._place(order, other)
        else:
            assert self._batch is not None
            self._batch.recurring.observe(place, self._options.clock() - self._started[lane])
            self._push(self._released(place))
        if not self._pending:
            self._batch, self._places = None, {}
        if not self._pending or action == self._awaited:
            self._changed.notify_all()

    def _waiting(self) -> Iterable[str]:
        for lane, action in self._busy.items():
            yield f"{lane} is busy with {action.label}"
        for ref, waiting in self._parked.items():
            yield f"{' and '.join(a.label for _, a in waiting)} wait{'s' * (len(waiting) == 1)} for {ref}"
        if not self._busy and not self._parked:
            yield f"{len(self._pending)} actions are pending and none can go"
