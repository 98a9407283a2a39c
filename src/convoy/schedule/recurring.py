"""The entries of one mini-batch that come again with every mini-batch, compiled once.

The entries are written for mini-batch 0 with every state at version 0. From their reads and writes follows, by the
three hazards of the scoreboard, which of them waits for which others; that holds for every later batch too, as all
numbers move on together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from convoy.errors import InternalError
from convoy.schedule.action import Action, Ref
from convoy.schedule.schedule import Entry


def predecessors(actions: Sequence[Action]) -> list[tuple[int, ...]]:
    """For each action, in program order, the places of those it waits for directly.

    Raises InternalError where a value is read that none of them writes, or a version is out of order.
    """
    writer: dict[Ref, int] = {}
    readers: dict[Ref, list[int]] = {}
    current: dict[str, int] = {}
    found: list[tuple[int, ...]] = []
    for place, action in enumerate(actions):
        before: set[int] = set()
        for ref in action.reads:
            if ref.is_state and current.setdefault(ref.name, 0) != ref.version:
                raise InternalError(f"{action.label} reads {ref}, but program order has {current[ref.name]}")
            if ref in writer:
                before.add(writer[ref])
            elif not ref.is_state:
                raise InternalError(f"{action.label} reads {ref}, which nothing before it writes")
            readers.setdefault(ref, []).append(place)
        for ref in action.writes:
            if ref.is_state:
                old = Ref(ref.name, ref.version - 1)
                if current.setdefault(ref.name, 0) != old.version:
                    raise InternalError(f"{action.label} writes {ref} after version {current[ref.name]}")
                current[ref.name] = ref.version
                before.update(readers.get(old, ()))
                before.update((writer[old],) if old in writer else ())
            writer[ref] = place
        before.discard(place)
        found.append(tuple(sorted(before)))
    return found


def upward_ranks(seconds: Sequence[float], successors: Sequence[Sequence[int]]) -> list[float]:
    """r(v) = seconds(v) + max r(successor): the length of the longest way from v to the end (Topcuoglu et al. 2002).

    Both sequences are in program order, in which a successor always comes later.
    """
    ranks = [0.0] * len(seconds)
    for place in range(len(seconds) - 1, -1, -1):
        ranks[place] = seconds[place] + max((ranks[s] for s in successors[place]), default=0.0)
    return ranks


class Occurrence(list[Entry]):
    """The entries of one mini-batch, and the ``recurring`` that they are an occurrence of."""

    def __init__(self, entries: Iterable[Entry], recurring: Recurring) -> None:
        super().__init__(entries)
        self.recurring = recurring


class Recurring:
    """Entries that come again. ``successors`` and ``waits`` (how many an entry waits for) are by place.

    ``ranks`` say which of several ready actions is urgent; they change no result. ``observe`` takes measured seconds,
    ``rank`` computes them anew.
    """

    def __init__(self, entries: Iterable[Entry], seconds: Sequence[float] | None = None) -> None:
        self.entries = tuple(entries)
        actions = [action for _, action in self.entries]
        before = predecessors(actions)
        after: list[list[int]] = [[] for _ in actions]
        for place, earlier in enumerate(before):
            for one in earlier:
                after[one].append(place)
        self.successors = tuple(map(tuple, after))
        self.waits = tuple(map(len, before))
        self.advances: dict[str, int] = {}
        """State → versions that one mini-batch adds."""
        for action in actions:
            for ref in action.writes:
                if ref.is_state:
                    self.advances[ref.name] = max(self.advances.get(ref.name, 0), ref.version)
        self._seconds = list(seconds) if seconds is not None else [0.0] * len(actions)
        self._measured = [False] * len(actions)
        self.ranks: list[float] = []
        self.rank()
        number: dict[Ref, int] = {}

        def numbers(refs: Sequence[Ref]) -> tuple[int, ...]:
            return tuple(number.setdefault(ref, len(number)) for ref in refs)

        self._forms = [(lane, a, numbers(a.reads), numbers(a.writes)) for lane, a in self.entries]
        self._refs = [(ref.name, ref.version, ref.is_state) for ref in number]

    def at(self, batch: int, versions: Mapping[str, int]) -> Occurrence:
        """The entries for mini-batch ``batch``, with the states at ``versions`` (0 where nothing is said)."""
        refs = [Ref(name, versions.get(name, 0) + v if state else batch) for name, v, state in self._refs]
        take = refs.__getitem__
        return Occurrence(
            (
                (lane, Action(a.kind, a.subject, batch, a.part, tuple(map(take, reads)), tuple(map(take, writes))))
                for lane, a, reads, writes in self._forms
            ),
            self,
        )

    def observe(self, place: int, seconds: float) -> None:
        """An action took ``seconds``. The least that was seen counts: disturbance only ever adds."""
        if not self._measured[place] or seconds < self._seconds[place]:
            self._seconds[place] = seconds
            self._measured[place] = True

    def rank(self) -> None:
        """Compute ``ranks`` from the seconds known so far."""
        self.ranks = upward_ranks(self._seconds, self.successors)
