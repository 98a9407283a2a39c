"""The commands of both sides as one list, for the checker of timing rules."""

from __future__ import annotations

from convoy.errors import InternalError
from convoy.hardware.description import Hardware
from convoy.hardware.memory.address import Integers
from convoy.hardware.memory.timing import Command
from convoy.hardware.pim.rounds import Row, commands
from convoy.hardware.step.layout import TRACE_ROUND
from convoy.hardware.step.parts import Parts


def expanded(recorded: Integers, parts: Parts, hardware: Hardware) -> list[Row]:
    """``recorded`` (as ``Outcome.commands``) with every round of the units as its row and column commands, in order of
    clocks. A refresh while the units hold the channel comes between two rounds, all rows closed."""
    found: list[Row] = []
    rounds: list[tuple[int, int]] = []  # clock and part

    def flush() -> int:
        """The rounds since the last break as commands; the clock from which on a refresh may come."""
        if not rounds:
            return 0
        kernels = [parts.kernels[part] for _, part in rounds]
        made = commands(kernels, hardware.memory, hardware.units, [clock for clock, _ in rounds])
        for clock, kernel in zip((c for c, _ in rounds), kernels, strict=True):
            if not any(row[0] == clock and row[1] in (Command.PIM_READ, Command.PIM_WRITE) for row in made):
                raise InternalError(f"the round of {kernel.name} at clock {clock} could not begin then")
        found.extend(made)
        rounds.clear()
        return 1 + max(row[0] for row in made)

    for clock, code, place, row in recorded.tolist():
        if code == TRACE_ROUND:
            rounds.append((clock, place))
        elif code == Command.REFRESH and row == 1:
            closed = flush()
            if closed:
                found.append((closed - 1 + hardware.memory.tRP, int(Command.REFRESH), -1, 0))
            else:  # nothing was open since the units came
                found.append((clock, int(Command.REFRESH), -1, 0))
        else:
            if code == Command.LEAVE:
                flush()
            found.append((clock, code, place, 0 if code in (Command.ENTER, Command.LEAVE) else row))
    flush()
    order = {int(Command.ENTER): 1, int(Command.LEAVE): -1}
    return sorted(found, key=lambda r: (r[0], order.get(r[1], 0)))
