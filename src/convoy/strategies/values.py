"""Checks of single values that a user hands to a strategy: each gives one sentence and the next step."""

from __future__ import annotations

import re
from collections.abc import Sequence
from numbers import Integral

from convoy.errors import OptionError


def check_one_of(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise OptionError(f"{name} is {value!r}", hint=f"choose one of {', '.join(choices)}")


def whole_number(name: str, value: object, hint: str) -> int:
    """``value`` as an int of at least 1. Truth values, fractions and text are none."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise OptionError(f"{name} is {value!r}", hint=hint)
    return int(value)


def check_switch(name: str, value: object, choices: Sequence[object] = (True, False)) -> None:
    """``value`` is one of ``choices`` itself: of True and False, perhaps None. No text such as "yes", and no number."""
    if not any(value is choice for choice in choices):
        raise OptionError(f"{name} is {value!r}", hint=f"give {' or '.join(map(str, choices))}")


def size_in_bytes(name: str, value: object, hint: str) -> int:
    """A number of bytes, or a size such as "256MB" (10**6 bytes), as bytes: at least 1."""
    found = parsed_size(value)
    if isinstance(found, float) and found.is_integer():  # such as 256e6
        found = int(found)
    return whole_number(name, found, hint)


def parsed_size(value: object) -> object:
    """``"1.5GB"`` as 1500000000; what is no such text stays as it is."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?", value.strip().lower())
    return value if found is None else int(float(found[1]) * 1000 ** " kmgt".index(found[2] or " "))
