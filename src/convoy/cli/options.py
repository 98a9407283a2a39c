"""From the fields of ``TrainConfig`` to the options of ``convoy train``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from cyclopts import Group, Parameter

from convoy.cli.config import TrainConfig, about, applies
from convoy.strategies.registry import STRATEGIES

_GROUPS = ("What", "Training", "Strategy", "Machine", "Run", "Command")


def command(arguments: Sequence[str]) -> Callable[..., int]:
    """The function that cyclopts calls for ``convoy train ARGUMENTS``. All options are understood; the help shows
    those of the strategy that was chosen."""
    strategy = chosen(arguments)
    groups = {name: Group(name, sort_key=number) for number, name in enumerate(_GROUPS)}
    parameters = [*_fields(strategy, groups), *_flags(groups["Command"])]
    signature = inspect.Signature(parameters)

    def train(*positional: Any, **keywords: Any) -> int:
        from convoy.cli.train import train as carry_out

        flags = {parameter.name for parameter in _flags(groups["Command"])}
        values = signature.bind(*positional, **keywords).arguments
        given = {key: value for key, value in values.items() if key not in flags and value is not None}
        return carry_out(given, **{key: value for key, value in values.items() if key in flags})

    train.__signature__ = signature  # type: ignore[attr-defined]
    train.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    train.__doc__ = _help(strategy)
    return train


def chosen(arguments: Sequence[str]) -> str:
    """The strategy that the command line names; the default where it names none that there is."""
    named = TrainConfig.model_fields["strategy"].default
    for here, following in zip(arguments, [*arguments[1:], ""], strict=False):
        if here == "--strategy":
            named = following
        elif here.startswith("--strategy="):
            named = here.partition("=")[2]
    return named if named in STRATEGIES else str(TrainConfig.model_fields["strategy"].default)


def _help(strategy: str) -> str:
    others = [name for name in STRATEGIES if name != strategy and any(map(_only(name), TrainConfig.model_fields))]
    more = "".join(f"\n\nconvoy train --strategy {name} --help shows the options of {name}." for name in others)
    return f"Train a network. Every option is also a key of the file given with --config.{more}"


def _only(strategy: str) -> Callable[[str], bool]:
    return lambda key: bool(about(key)["of"]) and applies(key, strategy)


def _fields(strategy: str, groups: Mapping[str, Group]) -> list[inspect.Parameter]:
    made = []
    for key, field in TrainConfig.model_fields.items():
        extra = about(key)
        default = field.default
        flag = field.annotation in (bool, bool | None)
        parameter = Parameter(
            help=str(field.description).format(strategies=", ".join(STRATEGIES)),
            group=groups[extra["group"]],
            metavar=None if flag else extra["value"] or "|".join(_choices(field.annotation)),
            show=applies(key, strategy),
            show_default=_shown(default),
        )
        made.append(
            inspect.Parameter(
                key,
                inspect.Parameter.POSITIONAL_OR_KEYWORD if key == "model" else inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[bool | None if flag else str | None, parameter],
            )
        )
    return made


def _shown(default: Any) -> Callable[[Any], str] | bool:
    """What the help says about the default; the parameters' own is always None, so that it is known what was given."""
    if default is None or default == "":
        return False
    text = {True: "yes", False: "no"}[default] if isinstance(default, bool) else str(default)
    return lambda _: text


def _choices(annotation: Any) -> tuple[str, ...]:
    return tuple(map(str, get_args(annotation))) if get_origin(annotation) is Literal else ()


def _flags(group: Group) -> list[inspect.Parameter]:
    """What is said to the command and is no part of a run."""

    def flag(name: str, kind: Any, default: Any, text: str, value: str | None = None) -> inspect.Parameter:
        parameter = Parameter(help=text, group=group, negative="", metavar=value, show_default=False)
        annotation = Annotated[kind, parameter]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)

    return [
        flag("config", Path | None, None, "A TOML file with options as keys.", "FILE"),
        flag("resume", Path | None, None, "Go on with a run: its folder, or a checkpoint in it.", "RUN"),
        flag("json", bool, False, "Print the result as one JSON object."),
        flag("quiet", bool, False, "No progress."),
        flag("debug", bool, False, "Show the traceback of an error."),
    ]
