"""What of a pipeline to look at first when a run diverges: what is in force, and could be otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from convoy.strategies.pipelined.corrections import Corrections

if TYPE_CHECKING:
    from convoy.strategies.pipelined.strategy import Pipelined

_ENLARGING = ("spike", "dc-asgd")
"""Corrections that can make a step larger than plain SGD's. The others shorten it, or leave its length alone."""
_FRESH, _PARTS = 0.5, 4  # a staleness in updates, and micro-batches, that trained well


def suspects(strategy: Pipelined, *, stages: int | None = None, automatic: bool = False) -> str | None:
    """``stages``: as planned, where that is known; ``automatic``: whether stages="auto" chose what stands there."""
    if 1 in (stages, strategy.stages):  # nothing is stale, and corrections do nothing
        return None
    enlarging = [name for name in Corrections.parse(strategy.correction).names if name in _ENLARGING]
    if enlarging:
        without = "correction='none'" if automatic else "without it"
        return f"correction {'+'.join(enlarging)!r} changes the effective step: try {without}"
    fresher = []
    if automatic:
        if strategy.max_staleness is None or strategy.max_staleness > _FRESH:
            fresher.append(f"max_staleness={_FRESH}")
    elif strategy.slack:
        fresher.append("slack=0")
    elif strategy.clock != "1f1b" and strategy.placement != "split":
        fresher.append("clock='1f1b'")
    if not automatic and strategy.accumulate < _PARTS:
        fresher.append(f"accumulate={_PARTS}")
    return f"stale weights bear less: try {' or '.join(fresher)}" if fresher else None
