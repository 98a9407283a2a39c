"""What a step consists of before it is cut into actions: operations on named values, each in tiles.

Values, by name: ``y.conv1`` what a node makes, ``s.conv1`` what its backward pass needs, ``d.conv1`` the gradient of
what it makes (``d.conv1<add`` the share of one consumer, where there are several), ``w.conv1`` gradients of its
weights, ``t`` the target, ``j.…`` a value whose tiles were joined. States: ``Wconv1`` weights, ``Rbn1`` running
statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from convoy.strategies.pipelined.optimizer import Hyper

Axis = Literal["whole", "samples", "channels"]


@dataclass(frozen=True, slots=True)
class Partition:
    """Into how many tiles, and along what: samples are dimension 0, channels dimension 1."""

    axis: Axis
    count: int = 1

    def bounds(self, size: int, tile: int) -> tuple[int, int]:
        """First and last + 1 of ``size`` samples or channels in ``tile``; channels in steps of 16 where they last."""
        step = 16 if self.axis == "channels" and size >= 16 * self.count else 1
        steps = size // step
        lo, hi = step * (tile * steps // self.count), step * ((tile + 1) * steps // self.count)
        return lo, size if tile == self.count - 1 else hi

    def narrow(self, value: Any, tile: int) -> Any:
        """The tile of a whole tensor, as a view; whatever is no tensor as it is."""
        if self.axis == "whole" or not isinstance(value, Tensor):
            return value
        dim = 0 if self.axis == "samples" else 1
        lo, hi = self.bounds(value.shape[dim], tile)
        return value.narrow(dim, lo, hi - lo)

    def join(self, tiles: Sequence[Any]) -> Any:
        """The whole of all tiles."""
        return tiles[0] if len(tiles) == 1 else torch.cat(tuple(tiles), 0 if self.axis == "samples" else 1)

    def tile_name(self, value: str, tile: int) -> str:
        return value if self.count == 1 else f"{value}[{tile}]"


WHOLE = Partition("whole")


@dataclass(slots=True)
class Frame:
    """One mini-batch on its way through the tasks. ``slots`` hold the values, one for each reader."""

    batch: int
    slots: list[Any]
    inputs: dict[str, Any]
    target: Any
    hyper: Hyper
    samples: int
    loss: Tensor | None = None
    output: Any = None


Run: TypeAlias = Callable[[Frame, int, list[Any]], Sequence[Any]]
"""``run(frame, tile, arguments)`` gives one result for each value written."""

How = Literal["tile", "view", "whole", "all", "first"]


@dataclass(frozen=True, slots=True)
class Read:
    """``tile``: the same tile of a value cut alike; ``view``: the tile of a value that is whole; ``whole``: that
    value; ``all``: the list of all its tiles, in order; ``first``: its first tile."""

    value: str
    how: How


@dataclass(slots=True)
class Op:
    """One kind of work, done once for each tile. ``reads_state`` and ``moves`` (states that get a new version) are
    names; with ``own_state`` each tile moves a part of its own. ``seconds``: estimate for all tiles; ``heavy``:
    work enough to be worth an action of its own. ``fresh``: the first value written is new memory that nothing else
    refers to. ``overwriting``: the same work, done in the memory of an argument; by that argument's place."""

    kind: str
    subject: str
    partition: Partition
    reads: tuple[Read, ...]
    writes: tuple[str, ...]
    run: Run
    reads_state: tuple[str, ...] = ()
    moves: tuple[str, ...] = ()
    own_state: bool = False
    seconds: float = 0.0
    heavy: bool = False
    fresh: bool = False
    overwriting: dict[int, Run] = field(default_factory=dict)


@dataclass(slots=True)
class Task:
    """Operations that are done one after the other for a tile, in one action."""

    kind: str
    subject: str
    ops: list[Op]

    @property
    def partition(self) -> Partition:
        return self.ops[0].partition


@dataclass(slots=True)
class Lowered:
    """Operations in program order, and how each value is cut."""

    ops: list[Op] = field(default_factory=list)
    values: dict[str, Partition] = field(default_factory=dict)
