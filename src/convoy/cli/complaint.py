"""What pydantic found wrong with a value, as one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convoy.errors import OptionError

_KINDS = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list, such as [7, 13]",
}
_BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def complaint(name: str, found: Mapping[str, Any], field: Any) -> OptionError:
    """The error for the option ``name``; ``found`` is one of pydantic's, ``field`` the model's field."""
    kind, context, value = found["type"], found.get("ctx", {}), found["input"]
    extra = field.json_schema_extra or {}
    shown = repr(value) if isinstance(value, str) else str(value)
    if kind in _BOUNDS:
        bound, words = _BOUNDS[kind]
        must, shown = f"{words} {context[bound]:g}", str(value)
    elif kind == "literal_error" and "|" not in extra.get("value", ""):
        must = f"one of {str(context['expected']).replace(' or ', ', ')}"
    elif "|" in extra.get("value", ""):
        must = f"one of {extra['value'].replace('|', ', ')}"
    else:
        must = _KINDS.get(kind, str(found["msg"]))
    default = field.default
    hint = "leave it out" if default is None or default == "" else f"leave it out for {default}"
    return OptionError(f"{name} is {shown}, but must be {must}", hint=hint)
