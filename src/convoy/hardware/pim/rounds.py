"""How long kernels take, and the commands that they consist of."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from convoy.hardware.memory.timing import Command, Memory
from convoy.hardware.pim.kernels import Kernel, round_clocks
from convoy.hardware.pim.units import Units

Row = tuple[int, int, int, int]


def rounds(elements: float, memory: Memory, units: Units) -> int:
    """Rounds for ``elements`` of one pseudo-channel."""
    return ceil(elements / units.round_elements(memory))


def kernel_clocks(kernel: Kernel, elements: float, memory: Memory, units: Units) -> int:
    """One use of ``kernel`` on so many elements of one pseudo-channel, host idle before and after, no refresh."""
    return units.fixed + rounds(elements, memory, units) * round_clocks(kernel, memory, units.registers)


def refresh_clocks(memory: Memory, *, wrote: bool) -> int:
    """What a refresh between two rounds adds: rows closed, refresh, rows opened again."""
    pace = max(memory.tCCD_L, memory.burst_clocks)
    write_end = memory.WL + memory.burst_clocks
    closed = max(write_end + memory.tWR if wrote else memory.tRTP, 1)
    usual = max(pace, write_end + memory.tWTR_L) if wrote else pace
    return closed + memory.tRP + memory.tRFC + memory.tRCDRD - usual


def commands(
    sequence: Sequence[Kernel],
    memory: Memory,
    units: Units,
    start: int | Sequence[int],
    *,
    phase: int = 0,
) -> list[Row]:
    """The commands of one round of each kernel of ``sequence``: rows of (clock, command, bank of the unit, row), for
    the checker of timing rules. ``start``: clock of the first column of the first round, or one for each round. Rows
    are opened ahead, so the list begins before that; all are closed at the end."""
    builder = _Builder(memory, units)
    starts = [start] * len(sequence) if isinstance(start, int) else start
    for number, (kernel, start) in enumerate(zip(sequence, starts, strict=True)):
        bank = (phase + number) % units.banks_per_unit
        turn = number // units.banks_per_unit
        streams = {stream: index for index, stream in enumerate(dict.fromkeys(s for _, s, _ in kernel.steps if s))}
        row = 0
        for kind, stream, times in kernel.steps:
            if stream:
                row = 1 + streams[stream] + 64 * (turn * units.registers // memory.columns)
            for _ in range(times * units.registers):
                builder.column(Command.PIM_WRITE if kind == "W" else Command.PIM_READ, bank, row, start)
    return builder.finish()


class _Builder:
    """Puts each column command at its first clock, and row commands before it as early as rules allow."""

    def __init__(self, memory: Memory, units: Units) -> None:
        self.memory, self.list = memory, list[Row]()
        n = units.banks_per_unit
        self.row: list[int | None] = [None] * n
        self.act, self.pre, self.read, self.write = ([-(10**6)] * n for _ in range(4))
        self.last_read = self.last_write = -(10**6)
        self.busy: set[int] = set()

    def column(self, command: Command, bank: int, row: int, start: int) -> None:
        m = self.memory
        pace = max(m.tCCD_L, m.burst_clocks)
        wrote = command == Command.PIM_WRITE
        ready = start
        if self.row[bank] != row:
            self._open(bank, row, start - max(m.tRCDRD, m.tRCDWR))
        ready = max(ready, self.act[bank] + (m.tRCDWR if wrote else m.tRCDRD))
        if wrote:
            clock = max(ready, self.last_write + pace, self.last_read + m.tRTW)
            self.last_write = self.write[bank] = clock
        else:
            clock = max(ready, self.last_read + pace, self.last_write + m.WL + m.burst_clocks + m.tWTR_L)
            self.last_read = self.read[bank] = clock
        self.list.append((clock, int(command), bank, row))

    def _open(self, bank: int, row: int, not_before: int) -> None:
        m = self.memory
        first = not_before
        if self.row[bank] is not None:
            closed = self._close(bank)
            first = max(first, closed + m.tRP)
        first = max(first, self.act[bank] + m.tRC, *(a + m.tRRD_L for a in self.act))
        self.act[bank] = self._place(first, Command.PIM_ACT, bank, row)
        self.row[bank] = row

    def _close(self, bank: int) -> int:
        m = self.memory
        done = max(self.act[bank] + m.tRAS, self.read[bank] + m.tRTP, self.write[bank] + m.WL + m.burst_clocks + m.tWR)
        self.row[bank] = None
        return self._place(done, Command.PIM_PRE, bank, 0)

    def _place(self, first: int, command: Command, bank: int, row: int) -> int:
        while first in self.busy:
            first += 1
        self.busy.add(first)
        self.list.append((first, int(command), bank, row))
        return first

    def finish(self) -> list[Row]:
        for bank, row in enumerate(self.row):
            if row is not None:
                self._close(bank)
        return sorted(self.list)
