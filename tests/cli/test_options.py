"""The help of ``convoy train``: all options, but of the strategies only the one that was chosen."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from convoy.cli.config import TrainConfig, applies
from convoy.cli.options import chosen, command


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
    assert "--strategy pipelined --help" in " ".join(plain.split())


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
