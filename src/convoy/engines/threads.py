"""One thread a lane. PyTorch releases the GIL inside its operators, so threads of one process suffice.

Workers take their own actions strictly in order and wait on one condition until the scoreboard lets the next one go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from convoy.engines.workers import Workers
from convoy.schedule.action import Action
from convoy.schedule.schedule import DRIVER


class ThreadsEngine(Workers):
    """Every lane of the schedule is a worker."""

    def _prepare(self) -> None:
        self._queues: dict[str, deque[Action]] = {lane: deque() for lane in self._options.lanes}

    def _enqueue(self, lane: str, action: Action) -> None:
        self._queues[lane].append(action)

    def _next(self, lane: str) -> Action | None:
        queue = self._queues[lane]
        while not self._stop and (not queue or self._board.blocker(queue[0]) is not None):
            self._changed.wait()
        return None if self._stop else queue[0]

    def _finish(self, lane: str, action: Action) -> None:
        self._board.finish(action)
        if lane != DRIVER:
            self._queues[lane].popleft()
            self._changed.notify_all()

    def _waiting(self) -> Iterable[str]:
        for lane, queue in self._queues.items():
            if queue:
                blocker = self._board.blocker(queue[0])
                if blocker is None:
                    yield f"{lane} is busy with {queue[0].label}"
                else:
                    yield f"{lane} waits for {blocker} to start {queue[0].label}"
