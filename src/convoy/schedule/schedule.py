"""A schedule: which lane does what, in program order, with a text form that parses back.

    worker 1 | F 1 0.0 : W1@0 i1@0 => s1@0 x1>2@0
    worker 2 | F 2 0.0 : W2@0 x1>2@0 i2@0 => s2@0 r@0

Program order is the order in which one thread would carry everything out; each lane keeps its own part of it. The
lane ``driver`` is the caller's thread: it brings batches in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from convoy.errors import InputError
from convoy.schedule.action import Action

Entry: TypeAlias = "tuple[str, Action]"
"""A lane's name and what it does."""

DRIVER = "driver"


@dataclass
class Schedule:
    """Entries in program order; extendable batch by batch."""

    entries: list[Entry] = field(default_factory=list)

    def extend(self, entries: Iterable[Entry]) -> None:
        self.entries.extend(entries)

    @property
    def lanes(self) -> tuple[str, ...]:
        """Lanes in natural order, the driver first where it has work."""
        names = dict.fromkeys(lane for lane, _ in self.entries)  # order of first appearance
        return tuple(sorted(names, key=lambda n: (n != DRIVER, int(re.sub(r"\D", "", n) or 0))))

    def lane(self, name: str) -> list[Action]:
        return [action for lane, action in self.entries if lane == name]

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def text(self) -> str:
        """One line an entry; ``Schedule.parse`` reads it back."""
        return "\n".join(f"{lane} | {action}" for lane, action in self.entries)

    @classmethod
    def parse(cls, text: str) -> Schedule:
        entries: list[Entry] = []
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            lane, bar, action = line.partition("|")
            if not bar:
                raise InputError(f"line {number} of the schedule has no lane: {line!r}", hint="write LANE | ACTION")
            entries.append((lane.strip(), Action.parse(action)))
        return cls(entries)
