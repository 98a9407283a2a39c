"""What engines with worker threads share: submitting, waiting, failing, stalling, stopping.

The driver submits; workers take actions when the scoreboard lets them go. A worker that raises stops all; whoever
waits gets the exception with the action named and the schedule drawn. A subclass says which action a worker takes
next, and what it waits for.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable

import torch

from convoy.engines.engine import EngineOptions, Failure, closed, perform, raise_failure
from convoy.engines.program import Program, Store
from convoy.errors import Stalled
from convoy.schedule.action import Action
from convoy.schedule.schedule import DRIVER, Entry
from convoy.schedule.scoreboard import Scoreboard

_LEAVE_SECONDS = 10.0  # for the action under way, when a step is dropped without close()
_POLL_SECONDS = 0.5  # how often a waiting driver looks at the watchdog


class Workers(ABC):
    """Workers as daemon threads of this process, one a lane of the options."""

    beside = True

    def __init__(self, program: Program, store: Store, options: EngineOptions) -> None:
        self._program, self._store, self._options = program, store, options
        self._board = Scoreboard()
        for name, version in options.versions.items():
            self._board.start_at(name, version)
            store.reset(name, version)
        self._pending: set[Action] = set()
        self._recent: deque[Entry] = deque(maxlen=options.history)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._moved_at = options.clock()
        self._failure: Failure | None = None
        self._stop = False
        self._workers = [
            threading.Thread(target=self._work, args=(lane, threads), name=f"convoy {lane}", daemon=True)
            for lane, threads in options.lanes.items()
        ]
        self._prepare()
        for worker in self._workers:
            worker.start()

    # --- what a subclass says; all are called with the lock held --------------------------------------------

    @abstractmethod
    def _prepare(self) -> None:
        """Set up own state, before the workers start."""

    @abstractmethod
    def _enqueue(self, lane: str, action: Action) -> None:
        """Take up an admitted action."""

    @abstractmethod
    def _next(self, lane: str) -> Action | None:
        """The next action of this worker, when it may go; None to end the worker. Waits."""

    @abstractmethod
    def _finish(self, lane: str, action: Action) -> None:
        """``action`` is done (that of the driver too)."""

    @abstractmethod
    def _waiting(self) -> Iterable[str]:
        """Who is busy with what, or waits for what, in words."""

    def _wake(self) -> None:
        """Let everybody look again."""
        self._changed.notify_all()

    # --- the driver's side ---------------------------------------------------------------------------------

    def submit(self, entries: Iterable[Entry]) -> None:
        entries = list(entries)
        with self._lock:
            self._check()
            if self._stop:
                raise closed()
            self._begin()
            self._recent.extend(entries)
            for _, action in entries:  # all of them first: a value stays until all its admitted readers are done
                self._board.admit(action)
        for lane, action in entries:
            if lane == DRIVER:
                self._carry_out(lane, action)
            with self._lock:
                if lane == DRIVER:
                    self._finish(lane, action)
                else:
                    self._pending.add(action)
                    self._enqueue(lane, action)
        with self._lock:
            self._wake()

    def _begin(self) -> None:
        if not self._pending:  # the watchdog does not count the time in which there was nothing to do
            self._moved_at = self._options.clock()

    def wait(self, action: Action) -> None:
        with self._lock:
            while action in self._pending:  # what is done stays readable, whatever failed later
                self._wait_a_little()

    def is_done(self, action: Action) -> bool:
        return action not in self._pending

    def settle(self) -> None:
        with self._lock:
            while self._pending:
                self._wait_a_little()
            self._check()

    def abandon(self) -> None:
        self._end(_LEAVE_SECONDS)

    def close(self) -> None:
        self._end(self._options.watchdog_seconds)
        torch.set_num_threads(torch.get_num_threads())  # for threads yet to come, what the workers set last counts

    def _end(self, seconds: float) -> None:
        """Stop the workers, and wait so long for the actions that are under way: the interpreter would end in the
        middle of them, and take the process down."""
        with self._lock:
            self._stop = True
            self._wake()
        deadline = time.monotonic() + seconds
        for worker in self._workers:
            if worker is not threading.current_thread():  # a step may be dropped anywhere
                worker.join(timeout=max(0.0, deadline - time.monotonic()))

    def _wait_a_little(self) -> None:
        self._check()
        if self._stop:
            raise closed()
        self._changed.wait(timeout=_POLL_SECONDS)
        self._check()
        silent = self._options.clock() - self._moved_at
        if silent > self._options.watchdog_seconds:
            raise Stalled(
                f"nothing moved for {silent:.0f} s: {', '.join(self._waiting())}",
                hint="a worker may be stuck in native code; raise watchdog_seconds if a step takes this long",
            )

    def _check(self) -> None:
        if self._failure is not None:
            raise_failure(self._failure, self._recent)

    # --- a worker's side -----------------------------------------------------------------------------------

    def _carry_out(self, lane: str, action: Action) -> None:
        perform(self._program, self._store, lane, action, self._options)

    def _work(self, lane: str, threads: int) -> None:
        torch.get_num_threads()  # else this thread's first parallel region takes over what another thread set last
        torch.set_num_threads(threads)  # holds for this thread's parallel regions
        with self._lock:
            action = self._next(lane)
        while action is not None:
            try:
                if self._options.disturb is not None:
                    self._options.disturb(lane, action)
                self._carry_out(lane, action)
            except BaseException as cause:
                with self._lock:
                    if self._failure is None:
                        self._failure = (lane, action, cause)
                    self._stop = True
                    self._wake()
                return
            with self._lock:
                self._pending.discard(action)
                self._moved_at = self._options.clock()
                self._finish(lane, action)
                action = self._next(lane)
