"""Options and config files: which goes first, what is wrong with a value, and what they are turned into."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from convoy.cli.config import TrainConfig, about, applies, merge, strategy_fields
from convoy.cli.setup import make
from convoy.errors import InputError, OptionError
from convoy.strategies.registry import STRATEGIES, strategy_class
from convoy.training.toml import dump_toml


def file(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text)
    return path


def test_command_line_before_file_before_defaults(tmp_path: Path) -> None:
    path = file(tmp_path, 'model = "lenet5"\nepochs = 3\nbatch-size = 16\n')
    config = merge({"epochs": "7"}, path)
    assert (config.epochs, config.batch_size, config.optimizer) == (7, 16, "sgd")


def test_text_of_the_command_line_becomes_values() -> None:
    given = {"model": "m:f", "ppv": "7,13", "cuts": "a, b", "lr": "1e-2", "nesterov": True, "save_every": "20"}
    config = merge(given)
    assert config.ppv == (7, 13)
    assert config.cuts == ("a", "b")
    assert config.lr == 0.01
    assert config.save_every == 20


def test_file_and_command_line_mean_the_same(tmp_path: Path) -> None:
    path = file(tmp_path, 'model = "m:f"\nppv = [7, 13]\ncuts = ["a", "b"]\nsave_every = "end"\nnesterov = true\n')
    typed = {"model": "m:f", "ppv": "7,13", "cuts": "a,b", "save_every": "end", "nesterov": True}
    assert merge({}, path) == merge(typed)


def test_a_config_survives_toml() -> None:
    config = merge({"model": "m:f", "ppv": "7,13", "lr": "0.1", "clip": "1", "strategy": "pipelined"})
    text = dump_toml(config.model_dump(exclude_none=True))
    assert TrainConfig(**tomllib.loads(text)) == config


@pytest.mark.parametrize(
    ("key", "value", "must", "example"),
    [
        ("batch_size", "0", "is 0, but must be at least 1", "64"),
        ("batch_size", "1.5", "is '1.5', but must be a whole number", "64"),
        ("epochs", "many", "is 'many', but must be a whole number", "10"),
        ("lr", "-0.1", "is -0.1, but must be greater than 0", "0.05"),
        ("lr", "inf", "is 'inf', but must be a finite number", "0.05"),
        ("momentum", "1", "is 1, but must be less than 1", "0.9"),
        ("ppv", "7,x", "is '7,x', but must be whole numbers such as 7,13", "7,13"),
        ("precision", "half", "is 'half', but must be one of 'float32', 'bfloat16'", "float32"),
        ("save_every", "0", "is '0', but must be one of epoch, end, N", "epoch"),
        ("seed", "-1", "is -1, but must be at least 0", "0"),
        ("memory", "abc", "is 'abc', but must be a size such as 256MB", "256MB"),
        ("max_memory", "0", "is 0, but must be at least 1", "2GB"),
        ("nodes", "abc", "is 'abc', but must be a number of nodes such as 3, or their speeds such as 2,1,1", "2,1,1"),
        ("nodes", "nan", "is 'nan', but must be a number of nodes such as 3, or their speeds such as 2,1,1", "2,1,1"),
        ("nodes", "2,,1", "is '2,,1', but must be a number of nodes such as 3, or their speeds such as 2,1,1", "2,1,1"),
        ("threshold", "-1", "is -1, but must be at least 0", "0.25"),
        ("groups", "0", "is 0, but must be at least 1", "4"),
        ("batches", "0", "is 0, but must be at least 1", "4"),
    ],
)
def test_wrong_values_of_the_command_line(key: str, value: str, must: str, example: str) -> None:
    with pytest.raises(OptionError) as caught:
        merge({"model": "lenet5", key: value})
    option = f"--{key.replace('_', '-')}"
    assert caught.value.message == f"{option} {must}"
    assert caught.value.hint == f"for example {option} {example}"


@pytest.mark.parametrize("key", [key for key, field in TrainConfig.model_fields.items() if "str" not in str(field)])
def test_the_example_that_a_hint_gives_is_right(key: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError) as caught:
        merge({}, file(tmp_path, f'model = "lenet5"\n{key} = {{}}\n'))
    hint = str(caught.value.hint)
    assert hint.startswith(f"for example {key} = ")
    again = file(tmp_path, f'model = "lenet5"\n{hint.removeprefix("for example ")}\n')
    assert getattr(merge({}, again), key) is not None


def test_a_wrong_value_of_a_file_names_the_file(tmp_path: Path) -> None:
    path = file(tmp_path, 'model = "lenet5"\nbatch_size = 0\n')
    with pytest.raises(OptionError, match=rf"batch_size in {path} is 0, but must be at least 1") as caught:
        merge({}, path)
    assert caught.value.hint == "for example batch_size = 64"


def test_text_in_a_file_needs_quotes(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="is 3, but must be text") as caught:
        merge({}, file(tmp_path, "model = 3"))
    assert caught.value.hint == "write it in quotes"


def test_an_unknown_key_is_an_error_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="unknown key batchsize") as caught:
        merge({"model": "lenet5"}, file(tmp_path, "batchsize = 3\n"))
    assert caught.value.hint == "did you mean batch_size?"


@pytest.mark.parametrize("text", ["epochs = = 3", "epochs = 3\nepochs = 4"])
def test_a_broken_file_is_one_sentence(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="is no TOML"):
        merge({"model": "lenet5"}, file(tmp_path, text))


def test_a_missing_or_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no config file"):
        merge({}, tmp_path / "none.toml")
    with pytest.raises(InputError, match="cannot be read"):
        merge({}, tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'model = "\xff"')
    with pytest.raises(InputError, match="no UTF-8"):
        merge({}, tmp_path / "latin.toml")


def test_no_model() -> None:
    with pytest.raises(OptionError, match="no model was named"):
        merge({"epochs": "3"})


@pytest.mark.parametrize("given", [{"momentum": "0"}, {"optimizer": "adamw"}])
def test_nesterov_needs_momentum(given: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="nesterov needs"):
        merge({"model": "lenet5", "nesterov": True, **given})


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_field_of_every_strategy_is_an_option(name: str) -> None:
    """A field that the command does not know, or an option that no strategy has, cannot slip in."""
    made: Any = strategy_class(name)
    keys = [key for key in TrainConfig.model_fields if about(key)["of"] and about(key)["group"] == "Strategy"]
    own = {key for key in keys if applies(key, name)}
    known = {field.name for field in fields(made)}
    if name == "hybrid":  # its parts take theirs
        parts: list[Any] = [strategy_class("sequential"), strategy_class("pipelined")]
        known |= {field.name for part in parts for field in fields(part)}
    assert own == known


def test_strategy_options_belong_to_strategies_that_there_are() -> None:
    for key in TrainConfig.model_fields:
        assert set(about(key)["of"]) <= set(STRATEGIES), key


def test_only_fields_that_were_given_reach_the_strategy() -> None:
    config = merge({"model": "lenet5", "strategy": "pipelined", "ppv": "2", "slack": "0"})
    assert strategy_fields(config) == {"ppv": (2,), "slack": 0}


def test_sizes_and_switches() -> None:
    config = merge({"model": "m:f", "max_memory": "1.5GB", "switch": "0.5"})
    assert (config.max_memory, config.switch) == (1_500_000_000, 0.5)
    assert merge({"model": "m:f", "max_memory": "1000", "switch": "5"}).switch == 5
    assert merge({"model": "m:f", "switch": "stall:2"}).switch == "stall:2"
    with pytest.raises(OptionError, match="--max-memory is 'much', but must be a size"):
        merge({"model": "m:f", "max_memory": "much"})


@pytest.mark.parametrize(("given", "switch"), [("2", 2), ("0.5", 0.5), ("stall:3", "stall:3"), (2, 2), (0.5, 0.5)])
def test_a_hybrid_is_described_by_its_parts_and_their_fields(given: object, switch: object) -> None:
    made: Any = make(merge({"model": "lenet5", "strategy": "hybrid", "switch": given, "ppv": "1"}))
    assert (made.switch, made.first.ppv, made.then.name) == (switch, (1,), "sequential")
