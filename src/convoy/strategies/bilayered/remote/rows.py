"""Effects of the parameter server as plain values, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from convoy.strategies.bilayered.messages import Acknowledge, Done, Effect, Grant, Merge, Note, Part, Refuse

_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (Grant, Merge, Acknowledge, Refuse, Note, Done)}


def effect_row(effect: Effect) -> dict[str, Any]:
    """An effect as plain values; ``effect_of`` reads them back."""
    return {"kind": type(effect).__name__, **asdict(effect)}


def effect_of(row: Mapping[str, Any]) -> Effect:
    """What ``effect_row`` was given."""
    values = dict(row)
    kind = _KINDS[values.pop("kind")]
    if kind is Grant:
        values["ranges"] = tuple((int(a), int(b)) for a, b in values["ranges"])
    elif kind is Merge:
        values["parts"] = tuple(Part(**part) for part in values["parts"])
    made: Effect = kind(**values)
    return made
