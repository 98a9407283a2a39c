"""Whether a list of commands keeps the memory's timing: written apart from the engines and from their table of rules,
straight from the definitions of the parameters, so that a mistake in one is found by the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from convoy.hardware.memory.timing import Command, Memory

_ROW = (Command.ACT, Command.PRE, Command.REFRESH, Command.PIM_ACT, Command.PIM_PRE)
_PIM = (Command.PIM_ACT, Command.PIM_PRE, Command.PIM_READ, Command.PIM_WRITE)
_LONG_AGO = -(10**9)


class _Bank:
    """When what happened to one bank for the last time."""

    def __init__(self) -> None:
        self.row: int | None = None
        self.act = self.pre = self.read = self.write = _LONG_AGO


class Checker:
    """Takes commands in order of their clocks and collects violations as sentences.

    ``banks_per_unit``: banks that share one unit in memory, for lists with commands of such units; bank b is number
    b mod ``banks_per_unit`` of its unit.
    """

    def __init__(self, memory: Memory, *, banks_per_unit: int = 2, refresh: bool = True) -> None:
        self.memory, self.banks_per_unit = memory, banks_per_unit
        self.refresh = refresh and memory.tREFI > 0
        self.banks = [_Bank() for _ in range(memory.banks)]
        self.violations: list[str] = []
        self.acts: deque[int] = deque(maxlen=4)
        self.refreshed = _LONG_AGO
        self.refreshes = 0
        self.last = {True: -1, False: -1}  # clock of the last row command, and of the last column command
        self.units_own = False

    def check(self, commands: Iterable[Iterable[int]]) -> list[str]:
        """All violations in ``commands``, rows of (clock, command, bank, row)."""
        for clock, code, bank, row in commands:
            self.take(clock, Command(code), bank, row)
        return self.violations

    def take(self, clock: int, command: Command, bank: int, row: int) -> None:
        if command in (Command.ENTER, Command.LEAVE):
            self._owner(clock, command)
            return
        self._bus(clock, command)
        if command in _PIM and not self.units_own:
            self._wrong(clock, command, bank, "the host holds the channel")
        if command not in _PIM and command != Command.REFRESH and self.units_own:
            self._wrong(clock, command, bank, "the units hold the channel")
        if command in (Command.ACT, Command.PIM_ACT):
            self._act(clock, command, bank, row)
        elif command in (Command.PRE, Command.PIM_PRE):
            self._pre(clock, command, bank)
        elif command == Command.REFRESH:
            self._refresh(clock)
        else:
            self._column(clock, command, bank, row)

    def _wrong(self, clock: int, command: Command, bank: int, why: str) -> None:
        self.violations.append(f"clock {clock}: {command.name} bank {bank}: {why}")

    def _after(self, clock: int, command: Command, bank: int, name: str, since: int, least: int) -> None:
        if clock - since < least:
            self._wrong(clock, command, bank, f"{name} is {least}, but only {clock - since} have passed")

    def _touched(self, command: Command, bank: int) -> list[int]:
        if command in _PIM:
            return [b for b in range(self.memory.banks) if b % self.banks_per_unit == bank]
        return list(range(self.memory.banks)) if bank < 0 else [bank]

    def _owner(self, clock: int, command: Command) -> None:
        if self.units_own == (command == Command.ENTER):
            self._wrong(clock, command, -1, "that side holds the channel already")
        if any(bank.row is not None for bank in self.banks):
            self._wrong(clock, command, -1, "a row is open")
        self.units_own = command == Command.ENTER

    def _bus(self, clock: int, command: Command) -> None:
        """One row command and one column command per clock."""
        row = command in _ROW
        if clock <= self.last[row]:
            self._wrong(clock, command, -1, "the bus carries another command of this sort, or a later one")
        self.last[row] = clock
        self._after(clock, command, -1, "tRFC", self.refreshed, self.memory.tRFC if self.refreshes else 0)

    def _act(self, clock: int, command: Command, place: int, row: int) -> None:
        m = self.memory
        for b in self._touched(command, place):
            bank = self.banks[b]
            if bank.row is not None:
                self._wrong(clock, command, b, f"row {bank.row} is open")
            self._after(clock, command, b, "tRP", bank.pre, m.tRP)
            self._after(clock, command, b, "tRC", bank.act, m.tRC)
        group = place // m.banks_per_group
        for b, other in enumerate(self.banks):
            near = command == Command.PIM_ACT or b // m.banks_per_group == group
            least, name = (m.tRRD_L, "tRRD_L") if near else (m.tRRD_S, "tRRD_S")
            self._after(clock, command, b, name, other.act, least)
        if command == Command.ACT:
            if len(self.acts) == 4:
                self._after(clock, command, place, "tFAW", self.acts[0], m.tFAW)
            self.acts.append(clock)
        for b in self._touched(command, place):
            self.banks[b].row, self.banks[b].act = row, clock

    def _pre(self, clock: int, command: Command, place: int) -> None:
        m = self.memory
        for b in self._touched(command, place):
            bank = self.banks[b]
            if bank.row is not None:
                self._after(clock, command, b, "tRAS", bank.act, m.tRAS)
                self._after(clock, command, b, "tRTP", bank.read, m.tRTP)
                self._after(clock, command, b, "write recovery", bank.write, m.WL + m.burst_clocks + m.tWR)
            elif command == Command.PRE and place >= 0:
                self._wrong(clock, command, b, "it is closed already")
            bank.row, bank.pre = None, clock

    def _refresh(self, clock: int) -> None:
        m = self.memory
        for b, bank in enumerate(self.banks):
            if bank.row is not None:
                self._wrong(clock, Command.REFRESH, b, f"row {bank.row} is open")
            self._after(clock, Command.REFRESH, b, "tRP", bank.pre, m.tRP)
        self.refreshes += 1
        if not self.refresh or clock < self.refreshes * m.tREFI:
            self._wrong(clock, Command.REFRESH, -1, "none is due")
        self.refreshed = clock

    def _column(self, clock: int, command: Command, place: int, row: int) -> None:
        m = self.memory
        writes = command in (Command.WRITE, Command.PIM_WRITE)
        touched = self._touched(command, place)
        for b in touched:
            bank = self.banks[b]
            if bank.row != row:
                self._wrong(clock, command, b, f"row {row} is asked for, {bank.row} is open")
            name, least = ("tRCDWR", m.tRCDWR) if writes else ("tRCDRD", m.tRCDRD)
            self._after(clock, command, b, name, bank.act, least)
        group = place // m.banks_per_group
        for b, other in enumerate(self.banks):
            near = command in _PIM or b // m.banks_per_group == group
            same = other.write if writes else other.read
            self._after(clock, command, b, "tCCD_L" if near else "tCCD_S", same, m.tCCD_L if near else m.tCCD_S)
            self._after(clock, command, b, "the data bus", same, m.burst_clocks)
            if writes:
                self._after(clock, command, b, "tRTW", other.read, m.tRTW)
            else:
                turn = m.WL + m.burst_clocks + (m.tWTR_L if near else m.tWTR_S)
                self._after(clock, command, b, "write to read", other.write, turn)
        for b in touched:
            if writes:
                self.banks[b].write = clock
            else:
                self.banks[b].read = clock
