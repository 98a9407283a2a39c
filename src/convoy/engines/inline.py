"""One thread, program order: the oracle."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from convoy.engines.engine import EngineOptions, perform
from convoy.engines.program import Program, Store
from convoy.schedule.action import Action
from convoy.schedule.schedule import DRIVER, Entry
from convoy.schedule.scoreboard import Scoreboard


class InlineEngine:
    """Carries out every action at once, with the intra-op threads its lane would have, since sums depend on them."""

    def __init__(self, program: Program, store: Store, options: EngineOptions) -> None:
        self._program, self._store, self._options = program, store, options
        self._board = Scoreboard()
        for name, version in options.versions.items():
            self._board.start_at(name, version)
            store.reset(name, version)
        self._done: set[Action] = set()

    def submit(self, entries: Iterable[Entry]) -> None:
        threads_before = torch.get_num_threads()
        try:
            for lane, action in entries:
                self._board.admit(action)
                blocker = self._board.blocker(action)
                if blocker is not None:
                    raise AssertionError(f"{action.label} is submitted before {blocker} is there")
                if lane != DRIVER:
                    torch.set_num_threads(self._options.lanes[lane])
                    if self._options.disturb is not None:
                        self._options.disturb(lane, action)
                perform(self._program, self._store, lane, action, self._options)
                self._board.finish(action)
        finally:
            torch.set_num_threads(threads_before)

    def wait(self, action: Action) -> None:
        """Everything submitted is done already."""

    def is_done(self, action: Action) -> bool:
        return True

    def settle(self) -> None:
        """Everything submitted is done already."""

    def close(self) -> None:
        """Nothing to stop."""
