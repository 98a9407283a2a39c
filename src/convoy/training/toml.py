"""Plain values as TOML text; the standard library only reads it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import date, datetime, time
from pathlib import PurePath
from typing import Any

from convoy.errors import OptionError

_BARE = re.compile(r"^[A-Za-z0-9_-]+$")


def dump_toml(table: Mapping[str, Any]) -> str:
    """``table`` as TOML that ``tomllib.loads`` reads back. Keys with the value None are left out, TOML has no null.

    Raises OptionError for a value that TOML cannot hold.
    """
    lines: list[str] = []
    _table(table, (), lines)
    return "\n".join(lines).strip() + "\n"


def _table(table: Mapping[str, Any], path: tuple[str, ...], lines: list[str]) -> None:
    plain = {k: v for k, v in table.items() if not isinstance(v, Mapping) and v is not None}
    inner = {k: v for k, v in table.items() if isinstance(v, Mapping)}
    if path and (plain or not inner):
        lines += ["", f"[{'.'.join(map(_key, path))}]"]
    lines += [f"{_key(key)} = {_value(value, (*path, key))}" for key, value in plain.items()]
    for key, value in inner.items():
        _table(value, (*path, key), lines)


def _key(key: str) -> str:
    return key if _BARE.match(key) else _string(key)


def _string(text: str) -> str:
    # JSON escapes are TOML escapes, but for the slash (not escaped by json) and DEL, which TOML wants escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any, path: tuple[str, ...]) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if math.isnan(value):
            return "nan"
        return repr(value) if math.isfinite(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, (str, PurePath)):
        return _string(str(value))
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(item, path) for item in value) + "]"
    if isinstance(value, Mapping):
        items = ((k, v) for k, v in value.items() if v is not None)
        return "{" + ", ".join(f"{_key(k)} = {_value(v, path)}" for k, v in items) + "}"
    raise OptionError(f"{'.'.join(path)} has the value {value!r}, which TOML cannot hold", hint="give plain values")
