"""What is known of a graph's cost: seconds and saved tensors per node, and sums over any stretch of nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from convoy.graph.graph import Cost, Graph, Node

SavedTable: TypeAlias = tuple[tuple[tuple[int, int], ...], ...]
"""For each node, in order: (storage number, bytes) of everything that autograd keeps on its account."""


@dataclass(frozen=True, slots=True)
class Alone:
    """Seconds of the gradients of one node computed apart, and of both in one call, measured on that node by itself.
    They may differ from what the node takes among the others, which is in its ``Cost``."""

    input_grad_seconds: float
    weight_grad_seconds: float
    joint_seconds: float


@dataclass(frozen=True)
class Profile:
    """A graph with costs, and how they were found. A stretch [start, stop) is of positions in ``graph.nodes``.

    ``method`` is "measured" or "estimated". ``saved`` is what autograd keeps, node by node. ``step_seconds`` are the
    whole measured passes (forward, loss, backward) that were kept, ``dropped`` how many were left out as disturbed.
    ``spread`` is, by node name, the interquartile range of its seconds over their median. The loss is on the account
    of the output node.
    """

    graph: Graph
    saved: SavedTable
    method: Literal["measured", "estimated"]
    threads: int = 1
    precision: str = "float32"
    step_seconds: tuple[float, ...] = ()
    dropped: int = 0
    spread: Mapping[str, float] = field(default_factory=dict)
    alone: Mapping[str, Alone] = field(default_factory=dict)

    @cached_property
    def costs(self) -> tuple[float, ...]:
        """Seconds of each node, forward and backward."""
        return tuple(cost_of(node).seconds for node in self.graph.nodes)

    @property
    def seconds(self) -> float:
        """The whole model, forward and backward, for one batch."""
        return sum(self.costs)

    @property
    def passes(self) -> int:
        """How many passes the seconds come from."""
        return len(self.step_seconds)

    @property
    def step_spread(self) -> float:
        """Interquartile range of the whole passes over their median: how restless the machine was."""
        return relative_spread(self.step_seconds)

    def forward_seconds(self, start: int, stop: int) -> float:
        return sum(cost_of(node).forward_seconds for node in self.graph.nodes[start:stop])

    def backward_seconds(self, start: int, stop: int) -> float:
        return sum(self.costs[start:stop]) - self.forward_seconds(start, stop)

    def saved_bytes(self, start: int, stop: int) -> int:
        """Bytes that a stage of these nodes keeps of one batch from forward to backward (A_i): each storage counted
        once, the stage's input too where the backward pass needs it; weights not counted."""
        return int(self.saved_matrix[start, stop])

    @cached_property
    def saved_matrix(self) -> NDArray[np.int64]:
        """``saved_bytes`` of all stretches: [start, stop], each from 0 to the number of nodes."""
        return saved_matrix(self.saved)


def cost_of(node: Node) -> Cost:
    """The node's cost; nothing where none was put in."""
    return node.cost or Cost()


def relative_spread(values: Sequence[float]) -> float:
    """(third quartile − first) / median; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return float((high - low) / middle) if middle > 0 else 0.0


def saved_matrix(saved: SavedTable) -> NDArray[np.int64]:
    """bytes[start, stop] of the distinct storages that nodes start .. stop − 1 keep.

    A storage kept at nodes p_1 < p_2 < … counts in [start, stop) once, at the first p_k ≥ start, so it adds to the
    rectangle p_{k-1} < start ≤ p_k < stop. The rectangles are summed as corners and integrated at the end.
    """
    size = len(saved) + 1
    corners = np.zeros((size + 1, size + 1), dtype=np.int64)
    before: dict[int, int] = {}
    for position, entries in enumerate(saved):
        for storage, amount in dict(entries).items():
            corners[before.get(storage, -1) + 1, position + 1] += amount
            corners[position + 1, position + 1] -= amount
            before[storage] = position
    return corners.cumsum(axis=0).cumsum(axis=1)[:size, :size]


def first_saved_bytes(saved: SavedTable) -> tuple[int, ...]:
    """For each node the bytes that no earlier node keeps already."""
    seen: set[int] = set()
    amounts = []
    for entries in saved:
        fresh = {storage: amount for storage, amount in entries if storage not in seen}
        seen.update(fresh)
        amounts.append(sum(fresh.values()))
    return tuple(amounts)
