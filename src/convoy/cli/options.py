"""From the fields of ``TrainConfig`` to the options of ``convoy train``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from cyclopts import Group, Parameter

from convoy.cli.config import TrainConfig, about, applies
from convoy.strategies.registry import STRATEGIES

GROUPS = ("What", "Training", "Strategy", "Machine", "Run", "Command")


def command(arguments: Sequence[str], verb: str = "train") -> Callable[..., int]:
    """The function that cyclopts calls for ``convoy train ARGUMENTS``, or another verb that is told what a run is. All
    options are understood; the help shows those of the strategy that was chosen."""
    strategy = chosen(arguments)
    groups = {name: Group(name, sort_key=number) for number, name in enumerate(GROUPS)}
    flags = _flags(groups["Command"], verb)
    parameters = [*option_parameters(strategy, groups), *flags]
    signature = inspect.Signature(parameters)

    def carry_out(*positional: Any, **keywords: Any) -> int:
        names = {parameter.name for parameter in flags}
        values = signature.bind(*positional, **keywords).arguments
        given = {key: value for key, value in values.items() if key not in names and value is not None}
        called: Callable[..., int] = getattr(import_module(f"convoy.cli.{verb}"), verb)
        return called(given, **{key: value for key, value in values.items() if key in names})

    carry_out.__name__ = verb
    carry_out.__signature__ = signature  # type: ignore[attr-defined]
    carry_out.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    carry_out.__doc__ = _help(strategy, verb)
    return carry_out


def chosen(arguments: Sequence[str]) -> str:
    """The strategy that the command line names; the default where it names none that there is."""
    named = TrainConfig.model_fields["strategy"].default
    for here, following in zip(arguments, [*arguments[1:], ""], strict=False):
        if here == "--strategy":
            named = following
        elif here.startswith("--strategy="):
            named = here.partition("=")[2]
    return named if named in STRATEGIES else str(TrainConfig.model_fields["strategy"].default)


_LINES = {
    "train": "Train a network. Every option is also a key of the file given with --config.",
    "plan": "What training would take, without training: one pipeline with --strategy pipelined, all strategies ranked "
    "without --strategy. The options are those of train.",
}


_PIPELINE = {
    "stages": "2",
    "placement": "colocated",
    "clock": "registers",
    "slack": "0",
    "accumulate": "1",
    "correction": "none",
    "recut": "off",
    "engine": "auto",
}
DEFAULTS: Mapping[str, Mapping[str, str]] = {
    "sequential": {"inner": "whole"},
    "pipelined": _PIPELINE,
    "hybrid": {**_PIPELINE, "first": "pipelined", "then": "sequential", "inner": "whole"},
    "speculative": {
        "engine": "auto",
        "form": "faithful",
        "cut": "planned",
        "predictor": "dithered:zero",
        "threshold": "1; zero and the cut form: 0.5; label memory: 0.25",
        "warmup": "50",
        "controller": "auto",
        "memory": "256MB",
    },
    "concurrent": {"placement": "planned", "engine": "auto"},
    "bilayered": {
        "inner": "whole",
        "engine": "auto",
        "nodes": "2",
        "update": "agwu-mended",
        "allocation": "idpa-mended",
        "batches": "4, or fewer in a short run",
        "round": "pass",
        "deltas": "float32",
    },
}
"""What the help says about fields that were not given; written out, since the strategies would load PyTorch for it."""

EXAMPLES = {
    "sequential": "--strategy sequential --inner tasks",
    "pipelined": "--strategy pipelined --stages 2",
    "hybrid": "--strategy hybrid --stages 2 --switch 0.5",
    "speculative": "--strategy speculative --threshold 0.5",
    "concurrent": "--strategy concurrent --groups 4",
    "bilayered": "--strategy bilayered --nodes 2,1,1",
}


def example(arguments: Sequence[str], verb: str) -> str:
    """The last line of the help."""
    return f"For example: convoy {verb} lenet5 --data digits {EXAMPLES[chosen(arguments)]}"


def _help(strategy: str, verb: str) -> str:
    others = "|".join(name for name in STRATEGIES if name != strategy)
    return f"{_LINES[verb]}\n\nOptions of other strategies: convoy {verb} --strategy {others} --help."


def option_parameters(strategy: str, groups: Mapping[str, Group]) -> list[inspect.Parameter]:
    """A parameter for every field of ``TrainConfig``; shown are those that apply to the strategy."""
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
            show_default=_shown(DEFAULTS.get(strategy, {}).get(key, default)),
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


def _flags(group: Group, verb: str) -> list[inspect.Parameter]:
    """What is said to the command and is no part of a run."""

    def flag(name: str, kind: Any, default: Any, text: str, value: str | None = None) -> inspect.Parameter:
        parameter = Parameter(help=text, group=group, negative="", metavar=value, show_default=False)
        annotation = Annotated[kind, parameter]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)

    own = {
        "train": [flag("resume", Path | None, None, "Go on with a run: its folder, or a checkpoint in it.", "RUN")],
        "plan": [
            flag("workers", int | None, None, "Cores to plan for. By default all there are.", "N"),
            flag("grid", bool, False, "Draw the schedule of a pipeline's first mini-batches."),
            flag("csv", bool, False, "Print the rows as comma-separated values."),
        ],
    }
    return [
        flag("config", Path | None, None, "A TOML file with options as keys.", "FILE"),
        *own[verb],
        flag("json", bool, False, "Print the result as one JSON object."),
        flag("quiet", bool, False, "No progress."),
        flag("debug", bool, False, "Show the traceback of an error."),
    ]
