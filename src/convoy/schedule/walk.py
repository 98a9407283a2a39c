"""Walk a schedule without doing its work: find deadlocks, predict times, count cycles, draw the grid.

Lanes take their actions strictly in order; an action starts when its lane is free and the scoreboard lets it go.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from convoy.errors import ConvoyError
from convoy.schedule.action import Action, Ref
from convoy.schedule.schedule import DRIVER, Entry, Schedule
from convoy.schedule.scoreboard import Scoreboard


class Deadlock(ConvoyError):
    """No lane can go on. ``waiting`` holds lane → (action, what it waits for)."""

    def __init__(self, waiting: Mapping[str, tuple[Action, Ref]]) -> None:
        self.waiting = waiting
        parts = ", ".join(f"{lane}: {action.label} waits for {ref}" for lane, (action, ref) in waiting.items())
        super().__init__(f"the schedule cannot go on: {parts}")


@dataclass(frozen=True, slots=True)
class Timed:
    """One action with its times, in seconds or in cycles."""

    lane: str
    action: Action
    start: float
    end: float


@dataclass(frozen=True)
class Walk:
    """All actions with their times, in program order of completion."""

    timed: tuple[Timed, ...]

    @property
    def finish(self) -> float:
        return max((t.end for t in self.timed), default=0.0)

    def busy(self) -> dict[str, float]:
        """Lane → the share of ``finish`` in which it works."""
        total: dict[str, float] = defaultdict(float)
        for t in self.timed:
            total[t.lane] += t.end - t.start
        return {lane: spent / self.finish if self.finish else 0.0 for lane, spent in total.items()}


def topological(schedule: Schedule, tail: bool = False) -> list[Entry]:
    """The entries in an order in which they can be carried out, each lane in its own order.

    ``tail``: the schedule is the end of a longer one; what it does not write was there before. Raises Deadlock where
    there is no order.
    """
    board = Scoreboard()
    if tail:
        _begin_within(board, schedule)
    queues: dict[str, list[Action]] = {lane: [] for lane in schedule.lanes}
    for lane, action in schedule:
        board.admit(action)
        queues[lane].append(action)
    heads = dict.fromkeys(queues, 0)
    done: list[Entry] = []
    while len(done) < len(schedule):
        before = len(done)
        for lane, queue in queues.items():
            while heads[lane] < len(queue) and board.blocker(queue[heads[lane]]) is None:
                action = queue[heads[lane]]
                board.finish(action)
                heads[lane] += 1
                done.append((lane, action))
        if len(done) == before:
            stuck = {ln: q[heads[ln]] for ln, q in queues.items() if heads[ln] < len(q)}
            blocked = {ln: (a, r) for ln, a in stuck.items() if (r := board.blocker(a)) is not None}
            raise Deadlock(blocked)
    return done


def _begin_within(board: Scoreboard, schedule: Schedule) -> None:
    known: set[str] = set()
    written: set[Ref] = set()
    for _, action in schedule:
        for ref in action.reads:
            if not ref.is_state and ref not in written:
                board.provide(ref)
            elif ref.is_state and ref.name not in known:
                known.add(ref.name)
                board.start_at(ref.name, ref.version)
        for ref in action.writes:
            written.add(ref)
            if ref.is_state and ref.name not in known:
                known.add(ref.name)
                board.start_at(ref.name, ref.version - 1)


def walk(schedule: Schedule, seconds: Callable[[Action], float], handover: float = 0.0) -> Walk:
    """Times of all actions if each takes ``seconds(action)`` and a value needs ``handover`` seconds to reach
    another lane. Raises Deadlock."""
    free: dict[str, float] = defaultdict(float)
    written: dict[Ref, tuple[float, str]] = {}
    read_until: dict[Ref, float] = defaultdict(float)
    timed: list[Timed] = []
    for lane, action in topological(schedule):
        start = free[lane]
        for ref in action.reads:
            at, producer = written.get(ref, (0.0, lane))
            start = max(start, at + (handover if producer != lane else 0.0))
        for ref in action.writes:
            if ref.is_state:
                before = Ref(ref.name, ref.version - 1)
                start = max(start, read_until[before], written.get(before, (0.0, lane))[0])
        end = start + seconds(action)
        free[lane] = end
        for ref in action.reads:
            read_until[ref] = max(read_until[ref], end)
        for ref in action.writes:
            written[ref] = (end, lane)
        timed.append(Timed(lane, action, start, end))
    return Walk(tuple(timed))


def cycles(schedule: Schedule, tail: bool = False) -> dict[Action, int]:
    """The cycle of every action, as the publications count them; ``tail`` as in ``topological``.

    In one cycle a lane does at most one action of each kind; what another subject (stage) wrote in a cycle is there
    in the next one; updates fall in the cycle of their backward.
    """
    lane_cycle: dict[str, int] = defaultdict(int)
    used: set[tuple[str, int, str]] = set()
    written: dict[Ref, tuple[int, str]] = {}
    result: dict[Action, int] = {}
    for lane, action in topological(schedule, tail):
        cycle = lane_cycle[lane]
        for ref in action.reads:
            if ref in written:
                at, subject = written[ref]
                cycle = max(cycle, at + (subject != action.subject and lane != DRIVER and subject != ""))
        if action.kind != "U" and lane != DRIVER:
            while (lane, cycle, action.kind) in used:
                cycle += 1
            used.add((lane, cycle, action.kind))
        lane_cycle[lane] = max(lane_cycle[lane], cycle)
        result[action] = cycle
        for ref in action.writes:
            written[ref] = (cycle, "" if lane == DRIVER else action.subject)
    return result


def idle_cycles(schedule: Schedule) -> dict[str, int]:
    """Lane → whole cycles without work between its first and its last action."""
    by_lane: dict[str, set[int]] = defaultdict(set)
    at = cycles(schedule)
    for lane, action in schedule:
        if lane != DRIVER and action.kind != "U":
            by_lane[lane].add(at[action])
    return {lane: max(c) - min(c) + 1 - len(c) for lane, c in by_lane.items()}


def grid(schedule: Schedule, mark: Action | None = None, tail: bool = False, around: int | None = None) -> str:
    """The schedule as a table of lanes × cycles; ``mark`` is put in >arrows<. Updates are not drawn.

    ``tail`` as in ``topological``; ``around`` draws only so many cycles before and after that of ``mark``.
    """
    at = cycles(schedule, tail)
    cells: dict[tuple[str, int], list[str]] = defaultdict(list)
    for lane, action in schedule:
        if lane == DRIVER or (action.kind == "U" and action != mark):
            continue
        label = f">{action.label}<" if action == mark else action.label
        cells[lane, at[action]].append(label)
    if not cells:
        return "(empty schedule)"
    first = min(c for _, c in cells)
    last = max(c for _, c in cells)
    if mark is not None and around is not None:
        first, last = max(first, at[mark] - around), min(last, at[mark] + around)
    lanes = [lane for lane in schedule.lanes if lane != DRIVER]
    rows = [["cycle", *map(str, range(first, last + 1))]]
    rows += [[lane, *(" ".join(cells.get((lane, c), [])) for c in range(first, last + 1))] for lane in lanes]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
