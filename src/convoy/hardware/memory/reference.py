"""The memory model in plain Python, one clock after the other: what the compiled engine has to equal.

The controller, clock by clock:

1. One request enters its queue (reads and writes apart), if one is offered and there is room.
2. While a refresh is due nothing else is issued: all banks are closed by one command, then REFRESH.
3. The controller reads, or writes. It turns to writing at ``write_high`` waiting writes, or when no read waits; back
   at ``write_low``, when a read waits.
4. One column command: the oldest request of the active queue whose row is open and whose time has come (first-ready,
   first-come, first-served: Rixner et al., "Memory Access Scheduling", ISCA 2000).
5. One row command, for the oldest request of a bank: ACT if the bank is closed; PRE if it has another row open that no
   request of the active queue wants. Among banks whose time has come, that of the oldest request.

Row and column commands have buses of their own, as in HBM.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from convoy.hardware.memory.address import Integers
from convoy.hardware.memory.timing import Command, Memory, Rule

ACT, PRE, READ, WRITE, REFRESH = tuple(Command)[:5]
ALL = -1


@dataclass(slots=True)
class _Waiting:
    """A request in its queue."""

    number: int
    bank: int
    row: int
    opened: bool = False  # a row was opened for it
    closed: bool = False  # another row was closed for it


class Channel:
    """Commands issued so far, and when the next of each kind may come."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.rules: dict[Command, tuple[Rule, ...]] = {
            command: tuple(r for r in memory.rules() if r.after == command) for command in Command
        }
        deepest = max(rule.window for rule in memory.rules())
        self.history: dict[tuple[Command, str, int], deque[int]] = {}
        self.depth = deepest
        self.open: list[int | None] = [None] * memory.banks
        self.commands: list[tuple[int, int, int, int]] = []

    def _places(self, bank: int) -> tuple[tuple[str, int], ...]:
        return (("bank", bank), ("group", bank // self.memory.banks_per_group), ("channel", 0))

    def earliest(self, command: Command, bank: int) -> int:
        """The first clock at which ``command`` may be issued to ``bank``."""
        where = dict(self._places(bank))
        clock = 0
        for rule in self.rules[command]:
            past = self.history.get((rule.before, rule.scope, where[rule.scope]))
            if past is not None and len(past) >= rule.window:
                clock = max(clock, past[-rule.window] + rule.clocks)
        return clock

    def issue(self, clock: int, command: Command, bank: int, row: int = 0) -> None:
        banks = range(self.memory.banks) if bank == ALL else (bank,)
        places = {place for b in banks for place in self._places(b)}
        for place in places:
            self.history.setdefault((command, *place), deque(maxlen=self.depth)).append(clock)
        for b in banks:
            if command == ACT:
                self.open[b] = row
            elif command == PRE:
                self.open[b] = None
        self.commands.append((clock, int(command), bank, row))


@dataclass
class Run:
    """Per request: clocks of entering and of the column command, and the outcome (0 hit, 1 closed, 2 conflict)."""

    accepted: Integers
    issued: Integers
    outcome: Integers
    commands: list[tuple[int, int, int, int]] = field(default_factory=list)
    refreshes: int = 0


def simulate(
    memory: Memory, bank: Integers, row: Integers, is_write: Integers, arrival: Integers, *, refresh: bool
) -> Run:
    """Carry out requests clock by clock, until the last column command."""
    n = len(bank)
    channel = Channel(memory)
    run = Run(np.full(n, -1, np.int64), np.full(n, -1, np.int64), np.zeros(n, np.int64), channel.commands)
    queues: tuple[list[_Waiting], list[_Waiting]] = ([], [])
    room = (memory.read_queue, memory.write_queue)
    writing = False
    offered = done = 0
    due = memory.tREFI if refresh and memory.tREFI else None
    clock = 0
    while done < n:
        if offered < n and arrival[offered] <= clock:
            queue = int(is_write[offered])
            if len(queues[queue]) < room[queue]:
                queues[queue].append(_Waiting(offered, int(bank[offered]), int(row[offered])))
                run.accepted[offered] = clock
                offered += 1
        if due is not None and clock >= due:
            if _refresh(channel, clock):
                due += memory.tREFI
                run.refreshes += 1
            clock += 1
            continue
        writing = _turn(memory, writing, len(queues[0]), len(queues[1]))
        active = queues[int(writing)]
        served = _column(channel, clock, active, WRITE if writing else READ)
        if served is not None:
            active.remove(served)
            run.issued[served.number] = clock
            run.outcome[served.number] = 2 if served.closed else int(served.opened)
            done += 1
        _row(channel, clock, active)
        clock += 1
    return run


def _turn(memory: Memory, writing: bool, reads: int, writes: int) -> bool:
    if writing:
        return writes > 0 and (reads == 0 or writes > memory.write_low)
    return writes >= memory.write_high or (reads == 0 and writes > 0)


def _refresh(channel: Channel, clock: int) -> bool:
    """One step towards a refresh; whether it was issued."""
    opened = [b for b, row in enumerate(channel.open) if row is not None]
    if opened:
        if all(channel.earliest(PRE, b) <= clock for b in opened):
            channel.issue(clock, PRE, ALL)
        return False
    if channel.earliest(REFRESH, 0) <= clock:
        channel.issue(clock, REFRESH, ALL)
        return True
    return False


def _column(channel: Channel, clock: int, active: list[_Waiting], command: Command) -> _Waiting | None:
    for request in active:
        if channel.open[request.bank] == request.row and channel.earliest(command, request.bank) <= clock:
            channel.issue(clock, command, request.bank, request.row)
            return request
    return None


def _row(channel: Channel, clock: int, active: list[_Waiting]) -> None:
    seen: set[int] = set()
    for request in active:
        if request.bank in seen:
            continue
        seen.add(request.bank)
        opened = channel.open[request.bank]
        if opened is None:
            if channel.earliest(ACT, request.bank) <= clock:
                channel.issue(clock, ACT, request.bank, request.row)
                request.opened = True
                return
        elif channel.earliest(PRE, request.bank) <= clock and not any(
            r.bank == request.bank and r.row == opened for r in active
        ):
            channel.issue(clock, PRE, request.bank)
            request.closed = True
            return
