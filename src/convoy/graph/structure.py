"""Nested values taken apart into leaves and put together again: what a model takes and what it returns.

Tuples, named tuples, lists, mappings, dataclasses (so also the output classes of Hugging Face) and plain objects
that carry tensors as attributes come back as the type they were.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

from torch import Tensor

Kind = Literal["leaf", "constant", "tuple", "named tuple", "list", "mapping", "dataclass", "object"]
Step = tuple[Literal["item", "attribute"], Any]


@dataclass(frozen=True)
class Structure:
    """How a nested value is built. ``keys`` and ``children`` run in parallel; ``value`` is the constant, or for an
    object and for an unusual mapping the example from which a new one is copied."""

    kind: Kind
    type: type | None = None
    keys: tuple[Any, ...] = ()
    children: tuple[Structure, ...] = ()
    value: Any = None

    def rebuild(self, leaves: Iterable[Any]) -> Any:
        """The nested value with ``leaves`` in the order in which ``flatten`` gave them."""
        return self._build(iter(leaves))

    def _build(self, leaves: Iterator[Any]) -> Any:
        if self.kind == "leaf":
            return next(leaves)
        if self.kind == "constant":
            return self.value
        parts = [child._build(leaves) for child in self.children]
        assert self.type is not None
        if self.kind in ("tuple", "list"):
            return self.type(parts)
        if self.kind == "named tuple":
            return self.type(*parts)
        if self.kind == "mapping":
            return self._mapping(dict(zip(self.keys, parts, strict=True)))
        if self.kind == "dataclass":
            return _new_dataclass(self.type, dict(zip(self.keys, parts, strict=True)))
        built = copy.copy(self.value)
        for key, part in zip(self.keys, parts, strict=True):
            setattr(built, key, part)
        return built

    def _mapping(self, parts: dict[Any, Any]) -> Any:
        if self.type is dict:
            return parts
        built = copy.copy(self.value)
        for key, part in parts.items():
            built[key] = part
        return built

    def paths(self) -> Iterator[tuple[Step, ...]]:
        """For each leaf, the items and attributes that lead to it."""
        if self.kind == "leaf":
            yield ()
        by_attribute = self.kind in ("dataclass", "object")
        for key, child in zip(self.keys, self.children, strict=True):
            step: Step = ("attribute" if by_attribute else "item", key)
            for rest in child.paths():
                yield (step, *rest)

    def same_form(self, other: Structure) -> bool:
        """Whether ``other`` is built alike, with equal constants."""
        if (self.kind, self.type, self.keys) != (other.kind, other.type, other.keys):
            return False
        if self.kind == "constant":
            try:
                return bool(self.value is other.value or self.value == other.value)
            except (TypeError, ValueError, RuntimeError):
                return False
        return len(self.children) == len(other.children) and all(
            mine.same_form(theirs) for mine, theirs in zip(self.children, other.children, strict=True)
        )


_LEAF = Structure("leaf")


def is_tensor(value: Any) -> bool:
    """The leaf test for tensors."""
    return isinstance(value, Tensor)


def map_nested(value: Any, function: Callable[[Any], Any]) -> Any:
    """``function`` over what lies in nested tuples, lists, dictionaries and slices; sizes become tuples."""
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(map_nested(part, function) for part in value)
    if isinstance(value, list):
        return [map_nested(part, function) for part in value]
    if type(value) is dict:
        return {key: map_nested(part, function) for key, part in value.items()}
    if isinstance(value, slice):
        return slice(
            map_nested(value.start, function), map_nested(value.stop, function), map_nested(value.step, function)
        )
    return function(value)


def flatten(value: Any, is_leaf: Callable[[Any], bool]) -> tuple[list[Any], Structure]:
    """The leaves of ``value``, in order, and its structure. Whatever is neither leaf nor container is a constant."""
    leaves: list[Any] = []
    return leaves, _take(value, is_leaf, leaves)


def _take(value: Any, is_leaf: Callable[[Any], bool], leaves: list[Any]) -> Structure:
    if is_leaf(value):
        leaves.append(value)
        return _LEAF
    kind = _kind(value)
    if kind == "constant":
        return _of_object(value, is_leaf, leaves)
    parts: Iterable[tuple[Any, Any]]
    example: Any = None
    if kind == "dataclass":
        parts = [(f.name, getattr(value, f.name)) for f in fields(value) if hasattr(value, f.name)]
    elif kind == "mapping":
        parts = value.items()
        example = None if type(value) is dict else value
    else:
        parts = enumerate(value)
    keys, values = zip(*parts, strict=True) if (parts := list(parts)) else ((), ())
    children = tuple(_take(part, is_leaf, leaves) for part in values)
    if all(child.kind == "constant" for child in children) and kind == "dataclass":
        return Structure("constant", type(value), value=value)
    return Structure(kind, type(value), tuple(keys), children, example)


def _kind(value: Any) -> Kind:
    if isinstance(value, type):
        return "constant"
    if is_dataclass(value):
        return "dataclass"
    if isinstance(value, Mapping):
        return "mapping"
    if isinstance(value, tuple):
        if hasattr(value, "_fields"):
            return "named tuple"
        return "tuple"
    return "list" if isinstance(value, list) else "constant"


def _of_object(value: Any, is_leaf: Callable[[Any], bool], leaves: list[Any]) -> Structure:
    """An object whose attributes are leaves; anything else is a constant."""
    attributes = getattr(value, "__dict__", None)
    if not isinstance(attributes, dict) or isinstance(value, type) or callable(value):
        return Structure("constant", type(value), value=value)
    found = [key for key, part in attributes.items() if is_leaf(part)]
    if not found:
        return Structure("constant", type(value), value=value)
    leaves.extend(attributes[key] for key in found)
    return Structure("object", type(value), tuple(found), (_LEAF,) * len(found), value)


def _new_dataclass(kind: type, parts: dict[str, Any]) -> Any:
    declared = {f.name: f for f in fields(kind)}
    built = kind(**{name: part for name, part in parts.items() if declared[name].init})
    for name, part in parts.items():
        if not declared[name].init:
            object.__setattr__(built, name, part)
    return built
