"""Strategies by name. A new one is one line here."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from convoy.errors import OptionError
from convoy.strategies.base import Strategy

STRATEGIES = {
    "sequential": "convoy.strategies.sequential:Sequential",
    "pipelined": "convoy.strategies.pipelined:Pipelined",
    "hybrid": "convoy.strategies.hybrid:Hybrid",
    "speculative": "convoy.strategies.speculative:Speculative",
    "concurrent": "convoy.strategies.concurrent:Concurrent",
    "bilayered": "convoy.strategies.bilayered:BiLayered",
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
    """``make_strategy("pipelined", stages=2)``. Raises OptionError for a field that the strategy does not have.

    ``make_strategy("hybrid", first="pipelined", then="sequential", switch=0.5, stages=2)``: the parts by name (these
    two when nothing is said) with their fields beside them, or each as a mapping ``{"name": ..., ...}``.
    """
    made = strategy_class(name)
    if name == "hybrid":
        fields = _hybrid_fields(fields)
    _check_fields(name, fields, _known(name))
    return made(**fields)


def strategy_values(strategy: Strategy) -> dict[str, Any]:
    """The name and fields of a strategy, strategies within it likewise, as ``make_strategy`` takes them."""
    values: dict[str, Any] = {"name": strategy.name}
    fields: tuple[dataclasses.Field[Any], ...] = (
        dataclasses.fields(strategy) if dataclasses.is_dataclass(strategy) else ()
    )
    for name in (field.name for field in fields):
        value = getattr(strategy, name)
        values[name] = strategy_values(value) if isinstance(value, Strategy) else value
    return values


def _known(name: str) -> list[str]:
    return list(inspect.signature(strategy_class(name)).parameters)


def _check_fields(name: str, fields: Mapping[str, Any], known: Sequence[str]) -> None:
    for field in fields:
        if field not in known:
            close = difflib.get_close_matches(field, known, n=1)
            offered = f"its fields: {', '.join(known)}" if known else "it has no fields"
            hint = f"did you mean {close[0]!r}?" if close else offered
            raise OptionError(f"strategy {name!r} has no field {field!r}", hint=hint)


def _hybrid_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """``first``, ``then`` and ``switch`` of a hybrid; the other fields go to the parts that have them."""
    own = {"first": "pipelined", "then": "sequential", **{k: v for k, v in fields.items() if k in _known("hybrid")}}
    if "switch" not in own:
        raise OptionError(
            "strategy 'hybrid' was not told when to switch",
            hint="give switch: 5 (after 5 epochs), 0.5 (half of the run), stall, stall:3 or batch:400",
        )
    others = {key: value for key, value in fields.items() if key not in own}
    named = {part: own[part] for part in ("first", "then") if isinstance(own[part], str)}
    _check_fields("hybrid", others, [*own, *(field for name in named.values() for field in _known(name))])
    for part, name in named.items():
        own[part] = make_strategy(name, **{k: v for k, v in others.items() if k in _known(name)})
    for part in ("first", "then"):
        if isinstance(own[part], Mapping):
            own[part] = make_strategy(**own[part])
    if isinstance(own["switch"], str):
        own["switch"] = _number(own["switch"])
    return own


def _number(text: str) -> int | float | str:
    """``"5"`` → 5, ``"0.5"`` → 0.5, anything else as it is."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
