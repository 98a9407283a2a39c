"""Options that several verbs share."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from cyclopts import Parameter

Json: TypeAlias = Annotated[
    bool, Parameter(help="Print the result as one JSON object.", negative="", show_default=False)
]
Quiet: TypeAlias = Annotated[bool, Parameter(help="No remarks beside the result.", negative="", show_default=False)]
Debug: TypeAlias = Annotated[bool, Parameter(help="Show the traceback of an error.", negative="", show_default=False)]
Run: TypeAlias = Annotated[
    str, Parameter(help="A run folder, a checkpoint in one, or a safetensors file.", metavar="RUN")
]
Which: TypeAlias = Annotated[
    str, Parameter(help="Which checkpoint of a run: best (where it was kept) or latest.", metavar="best|latest")
]


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise OptionError unless ``value`` is one of ``choices``."""
    if value not in choices:
        from convoy.errors import OptionError

        raise OptionError(
            f"{name} is {value!r}, but must be one of {', '.join(choices)}", hint=f"for example {name} {choices[0]}"
        )


def check_count(name: str, value: int | None, example: int) -> None:
    """Raise OptionError unless ``value`` is None or at least 1; its hint shows ``example``."""
    if value is not None and value < 1:
        from convoy.errors import OptionError

        raise OptionError(f"{name} is {value}, but must be at least 1", hint=f"for example {name} {example}")
