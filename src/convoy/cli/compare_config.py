"""From options and a config file to what is compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from convoy.cli.compare_options import OWN_KEYS, takes
from convoy.cli.config import TrainConfig, about, applies, merge, read_file
from convoy.comparison.spec import split_spec
from convoy.errors import OptionError
from convoy.strategies.registry import strategy_class

CONFIG_FILE = "comparison.toml"


@dataclass(frozen=True, slots=True)
class CompareConfig:
    """``runs``: label → the options of its runs. ``shared``: the options that were given, as comparison.toml holds
    them, with the strategies as they were named."""

    runs: Mapping[str, TrainConfig]
    epochs: int | None
    minutes: float | None
    seeds: int
    target: float | None
    shared: Mapping[str, Any]

    @property
    def first(self) -> TrainConfig:
        return next(iter(self.runs.values()))


def build(
    given: Mapping[str, Any],
    *,
    strategies: Sequence[str] | None,
    minutes: float | None,
    seeds: int | None,
    target: float | None,
    file: Path | None,
) -> CompareConfig:
    """What the command line and ``file`` ask for; the command line goes first. Raises InputError."""
    values = {} if file is None else read_file(file, OWN_KEYS)
    for key in values:
        if key not in OWN_KEYS and not takes(key):
            hint = "strategies = [...] holds each strategy with its fields" if key == "strategy" else "drop it"
            raise OptionError(f"config file {file} has {key}, which a comparison does not take", hint=hint)
    named = list(strategies) if strategies else values.get("strategies")
    entrants = [_strategy(item) for item in named] if isinstance(named, list) else []
    if len(entrants) < 2:
        number = "only one strategy is named" if entrants else "no strategy is named"
        raise OptionError(
            f"there is nothing to compare: {number}",
            hint="for example --strategy sequential --strategy pipelined:stages=2",
        )
    own = {"minutes": minutes, "seeds": seeds, "target": target}
    own = {key: values.get(key) if value is None else value for key, value in own.items()}
    for key, value in own.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0):
            raise OptionError(f"--{key} is {value!r}, but must be a number above 0")
    if own["seeds"] is not None and not isinstance(own["seeds"], int):
        raise OptionError(f"--seeds is {own['seeds']!r}, but must be a whole number")
    if own["target"] is not None and own["target"] > 1:
        raise OptionError(f"--target is {own['target']}, but an accuracy is a share of at most 1", hint="such as 0.97")
    train = {**{key: value for key, value in values.items() if key not in OWN_KEYS}, **given}
    _check_budget(train, own["minutes"])
    if own["minutes"] is not None:
        train.setdefault("lr_schedule", "constant")
    runs = {}
    for label, fields in entrants:
        if label in runs:
            raise OptionError(f"strategy {label!r} is named twice", hint="--seeds repeats every strategy")
        name = str(fields["strategy"])
        runs[label] = merge({**{key: value for key, value in train.items() if applies(key, name)}, **fields})
    first = next(iter(runs.values()))
    return CompareConfig(
        runs=runs,
        epochs=first.epochs if own["minutes"] is None else None,
        minutes=own["minutes"],
        seeds=int(own["seeds"] or 1),
        target=own["target"],
        shared={
            **{key: getattr(first, key) for key in train},
            "strategies": named,
            **{key: value for key, value in own.items() if value is not None},
        },
    )


def _strategy(item: Any) -> tuple[str, dict[str, Any]]:
    """Label and options of a strategy: a text, or a table with ``name``, its fields and perhaps a ``label``."""
    if isinstance(item, str):
        name, fields = split_spec(item)
        _check_fields(item, name, fields)
        return item, {"strategy": name, **fields}
    if not isinstance(item, Mapping) or "name" not in item:
        raise OptionError(
            f"strategy {item!r} has no name", hint='write "sequential" or {name = "pipelined", stages = 2}'
        )
    fields = {key.replace("-", "_"): value for key, value in item.items() if key not in ("name", "label")}
    _check_fields(str(item["name"]), str(item["name"]), fields)
    chosen = ",".join(f"{key}={_text(value)}" for key, value in fields.items())
    label = str(item.get("label") or f"{item['name']}{':' + chosen if chosen else ''}")
    return label, {"strategy": item["name"], **fields}


def _check_fields(text: str, name: str, fields: Mapping[str, Any]) -> None:
    """Raise OptionError for a strategy, or a field of it, that there is not; ``text`` is how it was written."""
    strategy_class(name)
    for key in fields:
        if key not in TrainConfig.model_fields:
            known = [one for one in TrainConfig.model_fields if about(one)["of"] and applies(one, name)]
            near = get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"its fields are {', '.join(known)}"
            raise OptionError(f"strategy {text!r} has the unknown field {key}", hint=hint)
        if not takes(key) and not about(key)["of"]:
            raise OptionError(f"strategy {text!r} has {key}, which a comparison does not take", hint="drop it")
        if takes(key):
            raise OptionError(f"strategy {text!r} has {key}, which is the same for all", hint=f"give --{key} once")
        if not applies(key, name):
            belongs = " or ".join(about(key)["of"])
            raise OptionError(f"strategy {text!r} has {key}, which {name} does not take", hint=f"it is of {belongs}")


def _check_budget(train: Mapping[str, Any], minutes: float | None) -> None:
    if minutes is None:
        return
    if "epochs" in train:
        raise OptionError("--epochs and --minutes are both given", hint="choose one of them as every run's budget")
    if train.get("lr_schedule", "constant") != "constant":
        raise OptionError(
            f"--lr-schedule {train['lr_schedule']} is laid out for a number of epochs, which --minutes does not know",
            hint="use --lr-schedule constant, or --epochs",
        )


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
