"""The help of ``convoy train``: all options, but of the strategies only the one that was chosen."""

from __future__ import annotations

import inspect
import sys
from dataclasses import MISSING, fields
from typing import Any

import pytest

from convoy.cli.config import TrainConfig, applies, merge
from convoy.cli.options import DEFAULTS, chosen, command
from convoy.cli.setup import make
from convoy.strategies.registry import STRATEGIES, strategy_class


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


def test_every_field_is_an_option() -> None:
    options = set(inspect.signature(command([])).parameters)
    assert options == {*TrainConfig.model_fields, "config", "resume", "json", "quiet", "debug"}


def test_help_shows_defaults_and_choices(convoy: Any) -> None:
    shown = convoy("train", "--help")
    assert shown.code == 0
    assert "--batch-size N" in shown.out and "[default: 64]" in shown.out
    assert "constant|cosine|one-cycle|step" in shown.out


def test_help_shows_what_applies_to_the_strategy(convoy: Any) -> None:
    plain, pipelined = (
        convoy("train", "--strategy", name, "--help").out.partition("For example:")[0]
        for name in ("sequential", "pipelined")
    )
    for key in TrainConfig.model_fields:
        option = f"--{key.replace('_', '-')} "
        assert (option in pipelined) == applies(key, "pipelined"), key
        assert (option in plain) == applies(key, "sequential"), key
    assert "pipelined" in plain.partition("Options of other strategies: ")[2].partition(" --help")[0]


@pytest.mark.parametrize("name", STRATEGIES)
def test_help_shows_the_defaults_that_a_strategy_has(name: str) -> None:
    made: Any = strategy_class(name)
    had = {field.name: field.default for field in fields(made) if field.default is not MISSING}
    for key, default in had.items():
        if default is not None and not isinstance(default, bool):
            read = merge({"model": "m", key: DEFAULTS[name][key]})
            assert getattr(read, key) == default, key
    assert set(DEFAULTS[name]) <= {key for key in TrainConfig.model_fields if applies(key, name)}


@pytest.mark.parametrize(
    ("fields", "place"),
    [({}, 0), ({"predictor": "zero"}, 1), ({"form": "cut"}, 1), ({"form": "faithful", "predictor": "label-last"}, 2)],
)
def test_thresholds_that_depend_on_form_and_predictor(fields: dict[str, str], place: int) -> None:
    made: Any = strategy_class("speculative")(**fields)
    said = DEFAULTS["speculative"]["threshold"].split("; ")[place]
    assert float(said.rpartition(": ")[2]) == made.threshold


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_example_is_of_the_chosen_strategy(convoy: Any, name: str) -> None:
    shown = " ".join(convoy("train", "--strategy", name, "--help").out.split())
    command_line = shown.partition("For example: ")[2]
    assert f"--strategy {name} " in command_line
    given = dict(zip(*[iter(command_line.split()[3:])] * 2, strict=True))
    make(merge({"model": "lenet5", **{key[2:].replace("-", "_"): value for key, value in given.items()}}))


def test_help_says_which_strategy_takes_which_engine(convoy: Any) -> None:
    shown = " ".join(convoy("train", "--strategy", "concurrent", "--help").out.replace("│", " ").split())
    for name in STRATEGIES:
        module = sys.modules[strategy_class(name).__module__]
        for engine, mark in (("streams", "streams (CUDA): "), ("ray", "ray: ")):
            if hasattr(module, "ENGINES"):
                said = shown.partition(mark)[2].partition(".")[0].split(", ")
                assert (name in said) == (engine in module.ENGINES), (name, engine)


@pytest.mark.parametrize(
    ("arguments", "strategy"),
    [
        ([], "sequential"),
        (["--strategy", "pipelined"], "pipelined"),
        (["--strategy=pipelined", "lenet5"], "pipelined"),
        (["--strategy", "nonsense"], "sequential"),
        (["--strategy"], "sequential"),
    ],
)
def test_the_strategy_is_read_from_the_command_line(arguments: list[str], strategy: str) -> None:
    assert chosen(arguments) == strategy
