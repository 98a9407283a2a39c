"""Numbers that depend on the batch size, while a model is being captured.

They are ordinary ints and floats with the value of the example batch, and remember how they came about, so that
``x.view(x.shape[0] // 2, -1)`` still fits a smaller last batch. What turns them into plain Python (a condition,
``int()``, ``math.sqrt``) fixes the example's value, and says so.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Protocol


class Listener(Protocol):
    """Is told where a number is fixed to its value for the example batch."""

    def fixed(self, what: str) -> None: ...


class BatchNumber:
    """What the two classes below share.

    ``second`` is the value for the other batch size, ``function`` and ``arguments`` say how to compute the number
    again (arguments are tensors, plain numbers and other batch numbers), ``listener`` hears where it is fixed.
    """

    second: Any
    function: Callable[..., Any] | str
    arguments: tuple[Any, ...]
    listener: Listener

    def _set(self, second: Any, function: Callable[..., Any] | str, arguments: tuple[Any, ...], to: Listener) -> Any:
        self.second, self.function, self.arguments, self.listener = second, function, arguments, to
        return self


class BatchInt(int, BatchNumber):
    """An int that depends on the batch size."""

    __hash__ = int.__hash__


class BatchFloat(float, BatchNumber):
    """A float that depends on the batch size."""

    __hash__ = float.__hash__


def batch_number(
    first: Any, second: Any, function: Callable[..., Any] | str, arguments: tuple[Any, ...], listener: Listener
) -> Any:
    """``first`` as a batch number when it is a number that differs from ``second``, else as it is."""
    if type(first) is bool or type(first) is not type(second) or first == second:
        return first
    if isinstance(first, int):
        return BatchInt(first)._set(second, function, arguments, listener)
    if isinstance(first, float):
        return BatchFloat(first)._set(second, function, arguments, listener)
    return first


def plain(value: Any) -> Any:
    """The value for the example batch."""
    if isinstance(value, BatchInt):
        return int.__int__(value)
    return float.__float__(value) if isinstance(value, BatchFloat) else value


def second_of(value: Any) -> Any:
    """The value for the other batch size."""
    return value.second if isinstance(value, BatchNumber) else value


def _arithmetic(function: Callable[..., Any], swapped: bool) -> Callable[..., Any]:
    def method(self: BatchNumber, *others: Any) -> Any:
        if not all(isinstance(other, int | float) for other in others):
            return NotImplemented
        operands = (*others, self) if swapped else (self, *others)
        try:
            second = function(*map(second_of, operands))
        except ArithmeticError:
            second = None
        return batch_number(function(*map(plain, operands)), second, function, operands, self.listener)

    return method


def _fixing(name: str, what: str) -> Callable[..., Any]:
    def method(self: BatchNumber, *others: Any) -> Any:
        self.listener.fixed(what)
        return getattr(plain(self), name)(*map(plain, others))

    return method


def _equip(kind: type) -> None:
    for name in ("add", "sub", "mul", "floordiv", "mod", "truediv", "pow"):
        setattr(kind, f"__{name}__", _arithmetic(getattr(operator, name), swapped=False))
        setattr(kind, f"__r{name}__", _arithmetic(getattr(operator, name), swapped=True))
    for name in ("neg", "abs"):
        setattr(kind, f"__{name}__", _arithmetic(getattr(operator, name), swapped=False))
    for name in ("eq", "ne", "lt", "le", "gt", "ge", "bool"):
        setattr(kind, f"__{name}__", _fixing(f"__{name}__", "a condition"))
    for name in ("int", "float", "round", "trunc", "floor", "ceil"):
        setattr(kind, f"__{name}__", _fixing(f"__{name}__", "a plain number"))


_equip(BatchInt)
_equip(BatchFloat)
