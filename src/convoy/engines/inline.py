"""One thread, program order: the oracle."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import torch

from convoy.engines.engine import EngineOptions, Failure, closed, perform, raise_failure
from convoy.engines.program import Program, Store
from convoy.errors import InternalError
from convoy.schedule.action import Action
from convoy.schedule.schedule import DRIVER, Entry
from convoy.schedule.scoreboard import Scoreboard


class InlineEngine:
    """Carries out every action at once, with the intra-op threads its lane would have, since sums depend on them."""

    beside = False

    def __init__(self, program: Program, store: Store, options: EngineOptions) -> None:
        self._program, self._store, self._options = program, store, options
        self._board = Scoreboard()
        for name, version in options.versions.items():
            self._board.start_at(name, version)
            store.reset(name, version)
        self._recent: deque[Entry] = deque(maxlen=options.history)
        self._failure: Failure | None = None
        self._closed = False

    def submit(self, entries: Iterable[Entry]) -> None:
        self._check()
        if self._closed:
            raise closed()
        entries = list(entries)
        self._recent.extend(entries)
        threads_before = torch.get_num_threads()
        try:
            for _, action in entries:  # all of them first: a value stays until all its admitted readers are done
                self._board.admit(action)
            for lane, action in entries:
                blocker = self._board.blocker(action)
                if blocker is not None:
                    raise InternalError(f"{action.label} is submitted before {blocker} is there")
                try:
                    self._carry_out(lane, action)
                except Exception as cause:
                    self._failure = (lane, action, cause)
                    break
                self._board.finish(action)
        finally:
            torch.set_num_threads(threads_before)
        self._check()

    def _carry_out(self, lane: str, action: Action) -> None:
        if lane != DRIVER:
            torch.set_num_threads(self._options.lanes[lane])
            if self._options.disturb is not None:
                self._options.disturb(lane, action)
        perform(self._program, self._store, lane, action, self._options)

    def _check(self) -> None:
        if self._failure is not None:
            raise_failure(self._failure, self._recent)

    def wait(self, action: Action) -> None:
        """Everything submitted is done already."""

    def is_done(self, action: Action) -> bool:
        return True

    def settle(self) -> None:
        """Everything submitted is done already, or failed."""
        self._check()

    def close(self) -> None:
        self._closed = True

    def abandon(self) -> None:
        """Nothing to stop."""
