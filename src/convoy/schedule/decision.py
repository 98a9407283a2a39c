"""Choices made while a run goes on.

A decision made from *data* (an accepted sample) is recomputed by the oracle and compared; one made from *timing* or
by the *user* (a drain, an arrival order, an interrupt) is taken from the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Cause = Literal["data", "timing", "user"]


@dataclass(frozen=True, slots=True)
class Decision:
    """``name`` of the choice, the mini-batch it precedes, why it fell, and its plain-data content."""

    name: str
    batch: int
    cause: Cause
    data: Mapping[str, Any] = field(default_factory=dict)
