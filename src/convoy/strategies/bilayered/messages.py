"""What the parameter server hears and what it asks to be done: plain data, no tensors.

``at`` is the time of the sender's engine in seconds: the state machine has no clock. ``incarnation`` counts a node's
lives, ``sequence`` its pushes within one, from 1.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

from convoy.strategies.bilayered.ledger import Range

# --- messages ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Goal:
    """Train to ``passes`` passes over the data in all; may be raised later."""

    passes: int
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Begin:
    """All nodes that were expected have joined: share out the first allocation batch."""

    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Join:
    """A node is there, for the first time or again. ``speed``: nominal or probed, in any unit that all share."""

    node: int
    incarnation: int
    speed: float = 1.0
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Push:
    """A round is through. ``seconds``: what it took, transfer included; ``quality``: accuracy of the node's weights on
    the held-out part; ``finite``: whether all its numbers are."""

    node: int
    incarnation: int
    sequence: int
    seconds: float = 1.0
    quality: float | None = None
    finite: bool = True
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Dead:
    """The engine saw that this life of the node is over."""

    node: int
    incarnation: int
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed: leases may have run out."""

    at: float = 0.0


Message: TypeAlias = "Goal | Begin | Join | Push | Dead | Tick"

# --- effects -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Grant:
    """Let the node train places ``start`` … ``stop`` − 1 of the order of pass ``number`` over ``ranges``, from version
    ``base``, and push as ``sequence``. ``step``: mini-batches that it was leased before, which keys random layers."""

    node: int
    incarnation: int
    sequence: int
    base: int
    number: int
    ranges: tuple[Range, ...]
    start: int
    stop: int
    step: int

    @property
    def samples(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Part:
    """A push that is merged with ``weight``; ``base``: the version that its node began with."""

    node: int
    incarnation: int
    sequence: int
    base: int
    weight: float
    samples: int


@dataclass(frozen=True, slots=True)
class Merge:
    """Make ``version``: ``how`` is "add" (W + weight·delta), "average" (Σ weight·W_j) or "assign" (W_j as it is)."""

    version: int
    how: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """The push is merged and journalled, or it was already (``again``)."""

    node: int
    incarnation: int
    sequence: int
    again: bool = False


@dataclass(frozen=True, slots=True)
class Refuse:
    """Nothing was done with the push or join. ``reason``: "dead" (the node must join as a new incarnation), "stale",
    "not finite" or "order"."""

    node: int
    incarnation: int
    sequence: int
    reason: str


@dataclass(frozen=True, slots=True)
class Note:
    """A decision for the record: what was chosen, whether from "data", "timing" or by the "user", and the numbers."""

    name: str
    cause: str
    data: dict[str, Any] = field(default_factory=dict, compare=False, hash=False)


@dataclass(frozen=True, slots=True)
class Done:
    """All passes asked for are merged."""

    version: int


Effect: TypeAlias = "Grant | Merge | Acknowledge | Refuse | Note | Done"

_KINDS: dict[str, type[Any]] = {kind.__name__.lower(): kind for kind in (Goal, Begin, Join, Push, Dead, Tick)}


def to_row(message: Message) -> dict[str, Any]:
    """A message as plain values, for the log of arrivals."""
    return {"kind": type(message).__name__.lower(), **asdict(message)}


def from_row(row: dict[str, Any]) -> Message:
    """What ``to_row`` was given."""
    values = dict(row)
    made: Message = _KINDS[values.pop("kind")](**values)
    return made
