"""Strategies by name. A new one is one line here."""

from __future__ import annotations

import difflib
import inspect
from importlib import import_module
from typing import Any

from convoy.errors import OptionError
from convoy.strategies.base import Strategy

STRATEGIES = {
    "sequential": "convoy.strategies.sequential:Sequential",
    "pipelined": "convoy.strategies.pipelined:Pipelined",
}


def strategy_class(name: str) -> type[Strategy]:
    """The strategy of that name. Raises OptionError with a suggestion."""
    if name not in STRATEGIES:
        close = difflib.get_close_matches(name, STRATEGIES, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"one of: {', '.join(STRATEGIES)}"
        raise OptionError(f"strategy {name!r} is unknown", hint=hint)
    module, attribute = STRATEGIES[name].split(":")
    found: type[Strategy] = getattr(import_module(module), attribute)
    return found


def make_strategy(name: str, **fields: Any) -> Strategy:
    """``make_strategy("pipelined", stages=2)``. Raises OptionError for a field that the strategy does not have."""
    made = strategy_class(name)
    known = list(inspect.signature(made).parameters)
    for field in fields:
        if field not in known:
            close = difflib.get_close_matches(field, known, n=1)
            offered = f"its fields: {', '.join(known)}" if known else "it has no fields"
            hint = f"did you mean {close[0]!r}?" if close else offered
            raise OptionError(f"strategy {name!r} has no field {field!r}", hint=hint)
    return made(**fields)
