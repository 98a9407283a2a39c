"""Strategies as text: ``pipelined:stages=2,clock=1f1b``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from convoy.errors import OptionError
from convoy.strategies.base import Strategy
from convoy.strategies.registry import make_strategy, strategy_class


def split_spec(text: str) -> tuple[str, dict[str, str]]:
    """The name and the fields, as text: ``"pipelined:ppv=3,5,clock=1f1b"`` → ``("pipelined", {"ppv": "3,5", …})``.
    Dashes in names of fields count as underscores. Raises OptionError."""
    name, _, rest = text.partition(":")
    fields: dict[str, str] = {}
    last = ""
    for piece in rest.split(",") if rest.strip() else []:
        key, equals, value = piece.partition("=")
        if equals:
            last = key.strip().replace("-", "_")
            if not last or last in fields:
                raise OptionError(f"strategy {text!r} names {last or 'no field'!r} twice or without a name")
            fields[last] = value.strip()
        elif last:  # one more of a list
            fields[last] += f",{piece.strip()}"
        else:
            raise OptionError(
                f"strategy {text!r} has {piece!r} where a field should be",
                hint="write it as name:field=value,field=value",
            )
    return name.strip(), fields


def parse(text: str) -> Strategy:
    """The strategy that the text describes. Raises OptionError."""
    name, fields = split_spec(text)
    kinds = _kinds(name)
    if name == "hybrid":  # which hands most fields on
        kinds = _kinds(fields.get("then", "sequential")) | _kinds(fields.get("first", "pipelined")) | kinds
    return make_strategy(name, **{key: _value(value, kinds.get(key, "")) for key, value in fields.items()})


def _kinds(name: str) -> dict[str, str]:
    """Field → its type as it is written."""
    kind = strategy_class(name)
    return {field.name: str(field.type) for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else {}


def labelled(strategies: Sequence[Strategy | str] | Mapping[str, Strategy | str]) -> dict[str, Strategy]:
    """Label → strategy; texts are their own labels, instances are called by their name and number."""
    if isinstance(strategies, str) or not strategies:
        raise OptionError(
            f"strategies is {strategies!r}, but must be a list, or a mapping from labels, with one or more",
            hint='["sequential", "pipelined:stages=2"]',
        )
    if isinstance(strategies, Mapping):
        return {str(label): parse(s) if isinstance(s, str) else s for label, s in strategies.items()}
    found: dict[str, Strategy] = {}
    for item in strategies:
        label = item if isinstance(item, str) else item.name
        number = 2
        while label in found:
            if isinstance(item, str):
                raise OptionError(f"strategy {item!r} is named twice", hint="--seeds repeats every strategy")
            label, number = f"{item.name} {number}", number + 1
        found[label] = parse(item) if isinstance(item, str) else item
    return found


def _value(text: str, kind: str) -> Any:
    """The text as a value of the type ``kind``, as it is written in the strategy."""
    if "tuple" in kind or "Sequence" in kind:
        return tuple(_one(part.strip(), kind) for part in text.split(","))
    return _one(text, kind)


def _one(text: str, kind: str) -> Any:
    if "bool" in kind and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for name, make in (("int", int), ("float", float)):
        if name in kind:
            try:
                return make(text)
            except ValueError:
                continue
    return text
