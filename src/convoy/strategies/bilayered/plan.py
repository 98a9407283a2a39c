"""What the bi-layered strategy decided before it began, and how its nodes stand while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median, median_low
from typing import Any

from convoy.strategies.bilayered.estimate import measured, shares
from convoy.strategies.bilayered.state import State

SLOW = 1.5
"""A node that needs so many times the seconds that its nominal speed promises is named slow."""


@dataclass(frozen=True, slots=True)
class BiLayeredPlan:
    """``samples`` are trained on, ``held_out`` others measure quality; ``bytes_per_push`` one way."""

    strategy: str
    engine: str
    workers: int
    speeds: tuple[float, ...]
    update: str
    allocation: str
    batches: int
    round: int | None
    samples: int
    held_out: int
    bytes_per_push: int
    threads: int
    notes: tuple[str, ...] = ()

    def table(self) -> str:
        """The plan as text for a person."""
        often = "local pass" if self.round is None else f"{self.round} mini-batches"
        parts = f"{self.batches} allocation batch{'es' * (self.batches > 1)}"
        lines = [
            f"bilayered: {self.workers} node{'s' * (self.workers > 1)} of nominal speeds "
            f"{', '.join(f'{speed:g}' for speed in self.speeds)}, engine {self.engine}",
            f"update {self.update} after each {often}; allocation {self.allocation} in {parts}",
            f"{self.samples} samples to train on"
            + (f", {self.held_out} held out to measure quality" if self.held_out else "")
            + f"; {self.bytes_per_push / 1e6:.2f} MB a push, and as much back",
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def slowness(state: State, speeds: Sequence[float]) -> dict[int, float]:
    """By live node with at least two rounds, the seconds that it needs now over those that its nominal speed promises.

    What a nominal speed of 1 comes to, the lower median of the nodes says: of two it is the one that keeps its promise
    better.
    """
    paces = {
        j: speeds[j] * median([seconds / samples for samples, seconds in node.rounds])
        for j, node in enumerate(state.nodes)
        if node.live and len(node.rounds) > 1
    }
    usual = median_low(paces.values()) if paces else 0.0
    return {j: pace / usual for j, pace in paces.items()} if usual > 0 else {}


def node_rows(state: State, speeds: Sequence[float]) -> list[dict[str, Any]]:
    """How each node stands beside its nominal speed: plain values for events."""
    parts, factors = shares(state), slowness(state, speeds)
    rows = []
    for j, node in enumerate(state.nodes):
        recent = measured(node)[-1] if measured(node) else None
        slow = factors.get(j, 1.0) > SLOW
        time = node.worked + node.waited
        rows.append(
            {
                "node": j,
                "state": "slow" if slow else "live" if node.live else "gone",
                "incarnation": node.incarnation,
                "samples_per_second": recent[0] / recent[1] if recent and recent[1] > 0 else None,
                "share": parts[j],
                "samples": node.samples,
                "pushes": node.pushes,
                "refused": node.refused,
                "lag": node.lag,
                "waited": node.waited / time if time > 0 else 0.0,
                "quality": node.quality,
            }
        )
    return rows
