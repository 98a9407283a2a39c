"""What pydantic found wrong with a value, as one sentence."""

from __future__ import annotations

import json
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
_BY_PLACEHOLDER = {
    "BYTES": "a size such as 256MB",
    "N,…": "whole numbers such as 7,13",
    "N|X,X,…": "a number of nodes such as 3, or their speeds such as 2,1,1",
}
EXAMPLES = {
    "image_size": 32,
    "augment": True,
    "limit": 1000,
    "clip": 1.0,
    "early_stopping": 5,
    "switch": "stall:2",
    "stages": 2,
    "max_staleness": 1.0,
    "cuts": ["conv2", "fc1"],
    "ppv": [7, 13],
    "slack": 1,
    "accumulate": 4,
    "groups": 4,
    "cut": 2,
    "threshold": 0.25,
    "warmup": 50,
    "memory": "256MB",
    "nodes": [2, 1, 1],
    "batches": 4,
    "round": 8,
    "quality": True,
    "insecure": True,
    "threads": 2,
    "max_memory": "2GB",
}
"""A right value for every option that is no text and has no default of its own."""
_BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def complaint(key: str, file: object, value: Any, found: Mapping[str, Any], field: Any) -> OptionError:
    """The error for ``value`` of the option ``key``, which the command line gave or, where it is not None, ``file``.
    ``found`` is one of pydantic's, ``field`` the model's field. The hint shows a right value."""
    kind, context = found["type"], found.get("ctx", {})
    place = (field.json_schema_extra or {}).get("value", "")
    shown = repr(value) if isinstance(value, str) else str(value)
    if kind in _BOUNDS:
        bound, words = _BOUNDS[kind]
        must, shown = f"{words} {context[bound]:g}", str(value)
    elif place in _BY_PLACEHOLDER:
        must = _BY_PLACEHOLDER[place]
    elif "|" in place:
        must = f"one of {place.replace('|', ', ')}"
    elif kind == "literal_error":
        must = f"one of {str(context['expected']).replace(' or ', ', ')}"
    else:
        must = _KINDS.get(kind, str(found["msg"]))
    name = f"--{key.replace('_', '-')}" if file is None else f"{key} in {file}"
    example = EXAMPLES.get(key, field.default)
    if example is None or example == "":
        hint = "write it in quotes"  # text: only a file can be wrong about it
    elif file is None:
        text = ",".join(map(str, example)) if isinstance(example, list) else str(example)
        hint = f"for example {name} {text}"
    else:
        hint = f"for example {key} = {json.dumps(example)}"
    return OptionError(f"{name} is {shown}, but must be {must}", hint=hint)
