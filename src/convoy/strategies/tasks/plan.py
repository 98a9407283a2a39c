"""What the inner layer decided: how many workers, into how many tiles each unit is cut, and what runs whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from convoy.schedule.plan import Plan, columns


@dataclass(frozen=True)
class UnitPlan:
    """One unit of the model. ``tiles``: "whole", "6 slices", "4 channel tiles"."""

    name: str
    kind: str
    tiles: str
    parameters: int


@dataclass(frozen=True)
class TaskPlan(Plan):
    """``actions``: of one mini-batch. ``without_rule``: nodes that run whole under autograd."""

    strategy: ClassVar[str] = "sequential"

    model: str
    batch_size: int
    workers: int
    actions: int
    units: tuple[UnitPlan, ...]
    without_rule: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def table(self) -> str:
        rows = [(u.name, u.kind, u.tiles, str(u.parameters)) for u in self.units]
        lines = [
            f"{self.model}, batch {self.batch_size}: {self.actions} actions a mini-batch on {self.workers} "
            f"worker{'s' * (self.workers > 1)} of one thread",
            columns(("unit", "kind", "tiles", "weights"), rows),
        ]
        if self.without_rule:
            lines.append(f"whole under autograd, without a rule: {', '.join(self.without_rule)}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])
