"""What was decided about CONV and non-CONV tasks, and what that should bring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from convoy.schedule.action import Action
from convoy.schedule.plan import Plan, columns
from convoy.schedule.recurring import Recurring
from convoy.schedule.schedule import DRIVER
from convoy.strategies.concurrent.schedule import CONV, NONCONV, Bounds, Layout, Work, bounds


@dataclass(frozen=True)
class PlannedAction:
    """``action``: in its text form, of mini-batch 0. ``seconds``: measured alone; 0 where nothing was measured."""

    lane: str
    action: str
    sort: str
    phase: str
    seconds: float


@dataclass(frozen=True)
class Considered:
    """One number of groups: what a step takes alone, one task after the other, and what it should take side by side."""

    groups: int
    serial_seconds: float
    predicted_seconds: float


@dataclass(frozen=True)
class ConcurrentPlan(Plan):
    """``serial_seconds``: all tasks one after the other, with these groups. ``balance_seconds``: the busier sort of
    work, which no placement by kind undercuts. ``chain_seconds``: the longest chain of tasks. ``whole``: units that are
    not cut into groups though there are several. ``schedule``: one mini-batch, in program order."""

    strategy: ClassVar[str] = "concurrent"

    model: str
    batch_size: int
    groups: int
    placement: str
    threads: tuple[int, int]
    serial_seconds: float
    predicted_seconds: float
    balance_seconds: float
    shared_seconds: float
    chain_seconds: float
    considered: tuple[Considered, ...]
    schedule: tuple[PlannedAction, ...]
    whole: tuple[str, ...] = ()
    without_rule: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def recurring(self) -> Recurring:
        """The schedule of every mini-batch."""
        return Recurring((planned.lane, Action.parse(planned.action)) for planned in self.schedule)

    def table(self) -> str:
        threads = "" if self.threads == (1, 1) else f", {self.threads[0]} + {self.threads[1]} threads"
        cut = "whole layers" if self.groups == 1 else f"{self.groups} groups of output channels"
        lines = [f"{self.model}, batch {self.batch_size}: {cut}, placement {self.placement!r}{threads}"]
        if self.serial_seconds:
            lines += [self._phases(), "", self._bounds()]
            if len(self.considered) > 1:
                rows = [
                    (str(c.groups), f"{c.serial_seconds * 1e3:.1f}", f"{c.predicted_seconds * 1e3:.1f}")
                    for c in self.considered
                ]
                lines += ["", columns(("groups", "one after the other, ms", "predicted, ms"), rows)]
        if self.whole:
            lines.append(f"not cut into groups: {_some(self.whole)}")
        if self.without_rule:
            lines.append(f"whole under autograd, without a rule: {_some(self.without_rule)}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def _phases(self) -> str:
        phases = dict.fromkeys(p.phase for p in self.schedule if p.lane != DRIVER)
        rows = []
        for phase in phases:
            mine = [p for p in self.schedule if p.phase == phase and p.lane != DRIVER]
            cells = [sum(p.seconds for p in mine if p.sort == sort) for sort in (CONV, NONCONV)]
            moved = sum(p.seconds for p in mine if p.sort != p.lane)
            rows.append((phase, str(len(mine)), *(f"{1e3 * c:.1f}" for c in (*cells, moved))))
        return columns(("phase", "tasks", "CONV, ms", "non-CONV, ms", "on the other engine, ms"), rows)

    def _bounds(self) -> str:
        serial = self.serial_seconds
        rows = [
            ("one after the other", serial),
            ("predicted", self.predicted_seconds),
            ("bound by kind: the busier sort", self.balance_seconds),
            ("bound of two engines: half of all", self.shared_seconds),
            ("bound of the longest chain", self.chain_seconds),
        ]
        shown = [(name, f"{1e3 * s:.1f}", f"{serial / s:.2f}") for name, s in rows if s]
        return columns(("a step", "ms", "times as fast"), shown)


def planned(
    work: Sequence[Work], layout: Layout, *, model: str, batch_size: int, groups: int, placement: str,
    threads: tuple[int, int], considered: Sequence[Considered] = (), whole: Sequence[str] = (),
    without_rule: Sequence[str] = (), notes: Sequence[str] = (),
) -> ConcurrentPlan:  # fmt: skip
    """The plan of ``work`` laid out so."""
    by_action = {one.action: one for one in work}
    found: Bounds = bounds(work)
    return ConcurrentPlan(
        model=model,
        batch_size=batch_size,
        groups=groups,
        placement=placement,
        threads=threads,
        serial_seconds=found.serial,
        predicted_seconds=layout.finish,
        balance_seconds=found.balance,
        shared_seconds=found.shared,
        chain_seconds=found.chain,
        considered=tuple(considered),
        schedule=tuple(
            PlannedAction(
                lane, str(action), by_action[action].sort, by_action[action].phase,
                by_action[action].seconds.get(lane, 0.0),
            )
            for lane, action in layout.entries
        ),
        whole=tuple(whole),
        without_rule=tuple(without_rule),
        notes=tuple(notes),
    )  # fmt: skip


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
