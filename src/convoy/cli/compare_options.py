"""The options of ``convoy compare``: those of ``convoy train`` but for the strategy's, and its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter

from convoy.cli.config import TrainConfig, about
from convoy.cli.options import GROUPS, option_parameters
from convoy.strategies.registry import STRATEGIES

OWN_KEYS = ("strategies", "minutes", "seeds", "target")
"""Keys of a config file that train does not have."""
_NOT = {"strategy", "keep_best", "early_stopping", "seed", "save_every", "tensorboard"}


def takes(key: str) -> bool:
    """Whether an option of ``train`` is one of ``compare`` too."""
    return key not in _NOT and about(key)["group"] != "Strategy"


def command() -> Callable[..., int]:
    """The function that cyclopts calls for ``convoy compare``."""
    groups = {name: Group(name, sort_key=number) for number, name in enumerate(("Compared", *GROUPS))}
    own = _own(groups)
    shared = [p for p in option_parameters("sequential", groups) if takes(p.name)]
    parameters = [*shared[:1], *own, *shared[1:]]
    signature = inspect.Signature(parameters)

    def compare(*positional: Any, **keywords: Any) -> int:
        from convoy.cli.compare import compare as carry_out

        values = signature.bind(*positional, **keywords).arguments
        names = {parameter.name for parameter in own}
        given = {key: value for key, value in values.items() if key not in names and value is not None}
        return carry_out(given, **{key: value for key, value in values.items() if key in names})

    compare.__signature__ = signature  # type: ignore[attr-defined]
    compare.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    compare.__doc__ = (
        "Train the same network on the same data under several strategies, an epoch each in turns, and say what the "
        "difference is. The first strategy is what the others are compared with."
    )
    return compare


def _own(groups: dict[str, Group]) -> list[inspect.Parameter]:
    def option(
        name: str, kind: Any, default: Any, group: str, text: str, value: str | None = None
    ) -> inspect.Parameter:
        parameter = Parameter(
            name=[f"--{name.replace('_', '-')}"], help=text, group=groups[group], negative="", metavar=value or None,
            show_default=False,
        )  # fmt: skip
        annotation = Annotated[kind, parameter]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)

    fields = ", ".join(key for key in TrainConfig.model_fields if about(key)["of"] and not takes(key))
    return [
        option("strategy", list[str] | None, None, "Compared",
               f"Once for each: {', '.join(STRATEGIES)}, with fields behind a colon, such as "
               f"pipelined:stages=2,clock=1f1b. Fields: {fields}.", "NAME[:FIELD=VALUE,…]"),
        option("minutes", float | None, None, "Compared", "Instead of epochs: minutes of training for each.", "M"),
        option("seeds", int | None, None, "Compared", "Repeat with so many seeds. By default 1.", "N"),
        option("target", float | None, None, "Compared",
               "The accuracy (a share) whose time is compared. By default the highest that all reach.", "X"),
        option("config", Path | None, None, "Command", "A TOML file with options as keys.", "FILE"),
        option("resume", Path | None, None, "Command", "Go on with a comparison: its folder.", "DIR"),
        option("json", bool, False, "Command", "Print the result as one JSON object."),
        option("quiet", bool, False, "Command", "No progress."),
        option("debug", bool, False, "Command", "Show the traceback of an error."),
    ]  # fmt: skip
