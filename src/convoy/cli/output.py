"""Where words go: results to stdout, everything else to stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any


def result(values: Mapping[str, Any], text: str, *, as_json: bool) -> None:
    """The result of a command: one JSON object on one line, or text."""
    if as_json:
        from convoy.events.plain import to_json

        print(to_json(values))
    else:
        print(text)


def note(text: str, *, quiet: bool = False) -> None:
    """A remark beside the result."""
    if not quiet:
        print(text, file=sys.stderr)


def pairs(rows: Iterable[tuple[str, str]]) -> str:
    """Names and values, aligned."""
    rows = list(rows)
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f} %"
