"""Who may go next: hazards between actions, from their reads and writes alone.

The one place that knows the rule, used by the walker (virtual time), the thread engine (real time) and the modelled
engine. Three rules, in the words of computer architecture:

- read after write: a value or a version of a state is there before it is read;
- write after read: version v + 1 of a state is written when all admitted readers of version v are done;
- write after write: versions of a state are written in order.

Actions are admitted in program order (the order in which one thread would carry them out), so a reader of version v
is always admitted before the writer of v + 1; ``admit`` checks that.
"""

from __future__ import annotations

from collections import Counter

from convoy.errors import InternalError
from convoy.schedule.action import Action, Ref


class Scoreboard:
    """Pending reads, present values and current versions. Not thread-safe: the engine holds its lock."""

    def __init__(self) -> None:
        self._version: dict[str, int] = {}
        self._admitted: dict[str, int] = {}
        self._readers: Counter[Ref] = Counter()
        self._present: set[Ref] = set()

    def start_at(self, name: str, version: int) -> None:
        """Let the state ``name`` begin at ``version`` (a resumed run)."""
        self._version[name] = self._admitted[name] = version

    def provide(self, ref: Ref) -> None:
        """Let the value ``ref`` be there from the start."""
        self._present.add(ref)

    def admit(self, action: Action) -> None:
        """Take up ``action``: its state reads now hold back later writers.

        Raises InternalError where it is out of program order.
        """
        for ref in action.reads:
            if ref.is_state and self._admitted.setdefault(ref.name, 0) != ref.version:
                raise InternalError(f"{action.label} reads {ref}, but program order has {self._admitted[ref.name]}")
            self._readers[ref] += 1
        for ref in action.writes:
            if ref.is_state:
                if ref.version != self._admitted.setdefault(ref.name, 0) + 1:
                    raise InternalError(f"{action.label} writes {ref} after version {self._admitted[ref.name]}")
                self._admitted[ref.name] = ref.version

    def blocker(self, action: Action) -> Ref | None:
        """The first thing that ``action`` still waits for; None when it may go."""
        for ref in action.reads:
            if ref.is_state:
                if self._version.get(ref.name, 0) != ref.version:
                    return ref
            elif ref not in self._present:
                return ref
        for ref in action.writes:
            if ref.is_state:
                before = Ref(ref.name, ref.version - 1)
                if self._version.get(ref.name, 0) != before.version:
                    return before
                if self._readers[before] > (before in action.reads):
                    return before
        return None

    def finish(self, action: Action) -> None:
        """``action`` is done: its writes are there, its reads are over. A value goes with its last reader."""
        for ref in action.reads:
            self._readers[ref] -= 1
            if not self._readers[ref]:
                del self._readers[ref]
                self._present.discard(ref)
        for ref in action.writes:
            if ref.is_state:
                self._version[ref.name] = ref.version
            else:
                self._present.add(ref)
