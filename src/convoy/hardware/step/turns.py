"""Turn policies: who holds the channel, and when it changes hands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from convoy.errors import OptionError
from convoy.hardware.pim.units import Units
from convoy.hardware.step import layout as L

TurnName = Literal["serial", "alternate", "queue", "idle", "partition", "planned"]
TURNS: dict[TurnName, str] = {
    "serial": "the host's tasks of a layer, then the units'; no groups",
    "alternate": "fixed turns of eight switch costs",
    "queue": "switch when many of the other side's requests wait, or the owner has none; marks per layer (published)",
    "idle": "switch only when the owner has nothing left",
    "partition": "half the banks for each side, shared feature maps copied",
    "planned": "turns as long as what the host holds on the chip lasts; groups and order of tasks planned (ours)",
}
MARKS = (4, 8, 16, 24, 32)
MINIMUM_TURNS = (0.5, 1.0, 2.0, 4.0)  # in switch costs
ALTERNATE_TURN = 8.0  # in switch costs


@dataclass(frozen=True, slots=True)
class Turns:
    """A policy with its numbers. ``mark``: requests or rounds that wait; ``minimum`` and ``turn`` in clocks."""

    name: TurnName
    mark: int = 0
    minimum: int = 0
    turn: int = 0

    @property
    def code(self) -> int:
        return {"alternate": L.ALTERNATE, "queue": L.QUEUE, "planned": L.PLANNED}.get(self.name, L.IDLE)

    def __str__(self) -> str:
        if self.name == "queue":
            return f"queue, mark {self.mark}, turns of at least {self.minimum} clk"
        return f"alternate, {self.turn} clk" if self.name == "alternate" else self.name


def candidates(name: TurnName, units: Units) -> tuple[Turns, ...]:
    """The policies among which one is chosen for each layer by trying them on a window; most have one only."""
    if name not in TURNS:
        raise OptionError(f"there is no turn policy {name!r}", hint=f"the policies are {', '.join(TURNS)}")
    cost = max(units.turn, 1)
    if name == "queue":
        return tuple(Turns("queue", mark, round(least * cost)) for mark in MARKS for least in MINIMUM_TURNS)
    if name == "alternate":
        return (Turns("alternate", turn=round(ALTERNATE_TURN * cost)),)
    return (Turns(name),)
