"""Events as plain JSON values."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from convoy.events.event import Event


def plain(value: Any) -> Any:
    """``value`` with mappings as dicts, tuples as lists and numbers that JSON lacks (NaN, infinities) as None."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    return str(value)


def to_json(value: Any) -> str:
    """One line of strict JSON."""
    return json.dumps(plain(value), separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def event_to_dict(event: Event) -> dict[str, Any]:
    """The event with its data under "data"; times rounded to the microsecond; fields at their default left out."""
    row: dict[str, Any] = {"kind": event.kind, "name": event.name, "start": round(event.start, 6)}
    if event.end != event.start:
        row["end"] = round(event.end, 6)
    if event.lane:
        row["lane"] = event.lane
    if event.batch >= 0:
        row["batch"] = event.batch
    if event.data:
        row["data"] = event.data
    return row
