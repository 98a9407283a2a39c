"""One thread a lane. PyTorch releases the GIL inside its operators, so threads of one process suffice.

The driver submits; workers take their own actions strictly in order and wait on one condition until the scoreboard
lets the next one go. A worker that raises stops all; whoever waits gets the exception with the action named and the
schedule drawn.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable

import torch

from convoy.engines.engine import EngineOptions, Failure, closed, perform, raise_failure
from convoy.engines.program import Program, Store
from convoy.errors import Stalled
from convoy.schedule.action import Action
from convoy.schedule.schedule import DRIVER, Entry
from convoy.schedule.scoreboard import Scoreboard

_POLL_SECONDS = 0.5  # how often a waiting driver looks at the watchdog


class ThreadsEngine:
    """Workers as daemon threads of this process."""

    def __init__(self, program: Program, store: Store, options: EngineOptions) -> None:
        self._program, self._store, self._options = program, store, options
        self._board = Scoreboard()
        for name, version in options.versions.items():
            self._board.start_at(name, version)
            store.reset(name, version)
        self._queues: dict[str, deque[Action]] = {lane: deque() for lane in options.lanes}
        self._pending: set[Action] = set()
        self._recent: deque[Entry] = deque(maxlen=options.history)
        self._changed = threading.Condition()
        self._moved_at = options.clock()
        self._failure: Failure | None = None
        self._stop = False
        self._threads_before = torch.get_num_threads()
        self._workers = [
            threading.Thread(target=self._work, args=(lane, threads), name=f"convoy {lane}", daemon=True)
            for lane, threads in options.lanes.items()
        ]
        for worker in self._workers:
            worker.start()

    # --- the driver's side ---------------------------------------------------------------------------------

    def submit(self, entries: Iterable[Entry]) -> None:
        with self._changed:
            if not self._pending:  # the watchdog does not count the time in which there was nothing to do
                self._moved_at = self._options.clock()
        for lane, action in entries:
            with self._changed:
                self._check()
                if self._stop:
                    raise closed()
                self._recent.append((lane, action))
                self._board.admit(action)
                if lane != DRIVER:
                    self._pending.add(action)
                    self._queues[lane].append(action)
            if lane == DRIVER:
                self._carry_out(lane, action)
                with self._changed:
                    self._board.finish(action)
        with self._changed:
            self._changed.notify_all()

    def wait(self, action: Action) -> None:
        with self._changed:
            while action in self._pending:  # what is done stays readable, whatever failed later
                self._wait_a_little()

    def is_done(self, action: Action) -> bool:
        return action not in self._pending

    def settle(self) -> None:
        with self._changed:
            while self._pending:
                self._wait_a_little()
            self._check()

    def abandon(self) -> None:
        with self._changed:
            self._stop = True
            self._changed.notify_all()

    def close(self) -> None:
        self.abandon()
        for worker in self._workers:
            worker.join(timeout=self._options.watchdog_seconds)
        torch.set_num_threads(self._threads_before)

    def _wait_a_little(self) -> None:
        self._check()
        if self._stop:
            raise closed()
        self._changed.wait(timeout=_POLL_SECONDS)
        self._check()
        silent = self._options.clock() - self._moved_at
        if silent > self._options.watchdog_seconds:
            heads = {lane: queue[0] for lane, queue in self._queues.items() if queue}
            waits = ", ".join(self._describe(lane, action) for lane, action in heads.items())
            raise Stalled(
                f"nothing moved for {silent:.0f} s: {waits}",
                hint="a worker may be stuck in native code; raise watchdog_seconds if a step takes this long",
            )

    def _describe(self, lane: str, action: Action) -> str:
        blocker = self._board.blocker(action)
        if blocker is None:
            return f"{lane} is busy with {action.label}"
        return f"{lane} waits for {blocker} to start {action.label}"

    def _check(self) -> None:
        if self._failure is not None:
            raise_failure(self._failure, self._recent)

    # --- a worker's side -----------------------------------------------------------------------------------

    def _carry_out(self, lane: str, action: Action) -> None:
        perform(self._program, self._store, lane, action, self._options)

    def _work(self, lane: str, threads: int) -> None:
        torch.set_num_threads(threads)  # holds for this thread's parallel regions
        queue, board, changed = self._queues[lane], self._board, self._changed
        while True:
            with changed:
                while not self._stop and (not queue or board.blocker(queue[0]) is not None):
                    changed.wait()
                if self._stop or self._failure is not None:
                    return
                action = queue[0]
            try:
                if self._options.disturb is not None:
                    self._options.disturb(lane, action)
                self._carry_out(lane, action)
            except BaseException as cause:
                with changed:
                    if self._failure is None:
                        self._failure = (lane, action, cause)
                    self._stop = True
                    changed.notify_all()
                return
            with changed:
                queue.popleft()
                self._pending.discard(action)
                board.finish(action)
                self._moved_at = self._options.clock()
                changed.notify_all()
