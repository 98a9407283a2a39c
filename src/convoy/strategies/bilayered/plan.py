"""What the bi-layered strategy decided before it began, and how its nodes stand while it runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from convoy.strategies.bilayered.estimate import measured, shares
from convoy.strategies.bilayered.state import State

SLOW = 1.5
"""A node that needs so many times the seconds its nominal speed promises, beside the others, is named slow."""


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


def node_rows(state: State) -> list[dict[str, Any]]:
    """How each node stands: plain values for events."""
    parts = shares(state)
    paces = {
        j: node.speed * node.worked / node.samples for j, node in enumerate(state.nodes) if node.live and node.samples
    }
    usual = median(paces.values()) if paces else 0.0
    rows = []
    for j, node in enumerate(state.nodes):
        recent = measured(node)[-1] if measured(node) else None
        slow = j in paces and paces[j] > SLOW * usual
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
