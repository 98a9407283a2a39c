"""``convoy train`` from end to end: what it prints, what it leaves, and that a config can be fed back."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

SMALL = ("lenet5", "--data", "digits", "--limit", "96", "--batch-size", "32", "--epochs", "2", "--lr", "0.02")


def weights(run: Path) -> dict[str, torch.Tensor]:
    latest = max((run / "checkpoints").iterdir())
    return load_file(latest / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_leaves_its_folder(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert names >= {"config.toml", "environment.json", "plan.json", "metrics.jsonl", "events.jsonl", "model.json"}
    config = tomllib.loads((trained / "config.toml").read_text())
    assert (config["model"], config["epochs"], config["lr"], config["strategy"]) == ("lenet5", 2, 0.02, "sequential")
    assert "stages" not in config and "resume" not in config
    facts = json.loads((trained / "model.json").read_text())
    assert facts["classes"] == [str(digit) for digit in range(10)] and facts["sample_shape"] == [1, 28, 28]


@pytest.mark.smoke
def test_result_on_stdout_progress_on_stderr(convoy: Any) -> None:
    done = convoy("train", *SMALL)
    assert done.code == 0
    (run,) = Path("runs").iterdir()
    assert done.out.startswith("accuracy") and f"run       {run}" in done.out
    assert "epoch 2/2" in done.err and "epoch" not in done.out.replace("epochs", "")
    assert "\x1b" not in done.err + done.out  # no terminal: plain lines


def test_json_and_quiet(convoy: Any) -> None:
    done = convoy("train", *SMALL, "--json", "--quiet")
    assert done.err == ""
    values = done.json
    assert values["epochs"] == 2 and len(values["history"]) == 2
    assert values["validation_accuracy"] == values["history"][-1]["validation_accuracy"]
    assert Path(values["run"]).is_dir()


@pytest.mark.smoke
def test_a_pipeline_prints_its_plan_first(convoy: Any) -> None:
    done = convoy("train", *SMALL, "--strategy", "pipelined", "--ppv", "1")
    assert done.code == 0, done.err
    assert done.err.count("of all; staleness is counted") == 2  # and again at the end, with what was measured
    assert done.err.index("of all; staleness is counted") < done.err.index("epoch 1/2")
    (run,) = Path("runs").iterdir()
    plan = json.loads((run / "plan.json").read_text())
    assert plan["strategy"] == "pipelined" and len(plan["stages"]) == 2
    assert tomllib.loads((run / "config.toml").read_text())["ppv"] == [1]


def test_a_hybrid_switches(convoy: Any) -> None:
    done = convoy("train", *SMALL, "--strategy", "hybrid", "--ppv", "1", "--switch", "0.5", "--name", "one", "--json")
    assert done.json["strategy"] == "hybrid"
    events = [json.loads(line) for line in Path("runs/one/events.jsonl").read_text().splitlines()]
    (switch,) = (event for event in events if event["kind"] == "decision" and event["name"] == "switch")
    assert switch["batch"] == 3
    config = tomllib.loads(Path("runs/one/config.toml").read_text())
    assert (config["ppv"], config["switch"]) == ([1], 0.5)


PIPELINED_LAST = ("--strategy", "hybrid", "--first", "sequential", "--then", "pipelined")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--ppv", "99"), "ppv [99] goes past the last place to cut: LeNet5 has 5 layers"),
        (("--ppv", "2", "--max-memory", "1MB"), "max_memory is 1.00 MB"),
        (("--ppv", "2", "--max-staleness", "1"), "max_staleness is 1"),
    ],
)
def test_what_the_second_part_of_a_hybrid_refuses_is_said_first(
    convoy: Any, options: tuple[str, ...], message: str
) -> None:
    done = convoy("train", *SMALL, *PIPELINED_LAST, *options, "--switch", "1")
    assert done.code == 2 and message in done.error
    assert "epoch 1/2" not in done.err and not Path("runs").exists()


def test_a_hybrid_shows_both_plans_first(convoy: Any) -> None:
    done = convoy("train", *SMALL, *PIPELINED_LAST, "--ppv", "2", "--switch", "batch:1000")
    assert done.code == 0, done.err
    lines = ("until the switch:", "from the switch on:", "of all; staleness is counted", "epoch 1/2")
    places = [done.err.index(text) for text in lines]
    assert places == sorted(places)
    assert "warning: the run has 6 mini-batches, so the switch before mini-batch 1000" in done.err[: places[-1]]
    plan = json.loads(next(Path("runs").iterdir()).joinpath("plan.json").read_text())
    assert plan["first"]["strategy"] == "sequential" and len(plan["then"]["stages"]) == 2


def test_a_config_fed_back_gives_the_same_bits(convoy: Any, trained: Path) -> None:
    done = convoy("train", "--config", trained / "config.toml", "--name", "again", "--json", "--quiet")
    assert same(Path(done.json["run"]), trained)


def test_another_seed_gives_other_bits(convoy: Any, trained: Path) -> None:
    convoy("train", *SMALL, "--name", "one", "--seed", "1", "--quiet")
    assert not same(Path("runs/one"), trained)


def test_weights_of_a_run_begin_another(convoy: Any, trained: Path) -> None:
    """With a vanishing learning rate the run ends where it began: at the weights that were given."""
    done = convoy("train", *SMALL[:-2], "--lr", "1e-30", "--weights", trained, "--name", "next", "--quiet")
    assert done.code == 0, done.err
    begun, ended = weights(trained), weights(Path("runs/next"))
    assert all(torch.allclose(ended[name], begun[name], atol=1e-20) for name in begun)


def test_weights_of_another_network_do_not_fit(convoy: Any, trained: Path) -> None:
    done = convoy("train", "resnet20", *SMALL[1:], "--weights", trained)
    assert done.code == 2
    assert "lacks" in done.error
    assert not Path("runs").exists()


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one-cycle", "step"])
def test_the_course_of_the_learning_rate(convoy: Any, schedule: str) -> None:
    """Three batches an epoch, four epochs; the rate that each batch was trained with, by hand."""
    arguments = ("lenet5", "--limit", "96", "--batch-size", "32", "--epochs", "4", "--lr", "0.04", "--name", "one")
    assert convoy("train", *arguments, "--lr-schedule", schedule, "--quiet").code == 0
    lines = map(json.loads, Path("runs/one/metrics.jsonl").read_text().splitlines())
    rates = [line["lr"] for line in lines if "train_loss" not in line]
    assert len(rates) == 12
    if schedule == "constant":
        assert rates == [0.04] * 12
    elif schedule == "step":
        assert rates == pytest.approx([0.04] * 6 + [0.004] * 3 + [0.0004] * 3)
    elif schedule == "cosine":
        assert rates == sorted(rates, reverse=True)
        assert rates[0] == 0.04 and rates[6] == pytest.approx(0.02)
    else:
        assert max(rates) == pytest.approx(0.04, rel=0.1)
        assert rates[0] < max(rates) and rates[-1] < rates[0]


def test_keep_best_and_early_stopping(convoy: Any) -> None:
    values = convoy(
        "train",
        *SMALL[:-4],
        "--epochs",
        "9",
        "--lr",
        "1e-30",
        "--early-stopping",
        "2",
        "--keep-best",
        "--json",
        "--quiet",
    ).json
    assert values["epochs"] == 3 and "has not improved for 2 epochs" in values["stopped_early"]
    assert values["best_epoch"] == 1


def test_bfloat16_and_adamw(convoy: Any) -> None:
    values = convoy("train", *SMALL, "--precision", "bfloat16", "--optimizer", "adamw", "--json", "--quiet").json
    assert 0 < values["train_loss"] < 3


def test_trace(convoy: Any) -> None:
    convoy("train", *SMALL, "--strategy", "pipelined", "--ppv", "1", "--trace", "--name", "one", "--quiet")
    assert Path("runs/one/trace.json.gz").stat().st_size > 100


def test_a_network_of_ones_own(convoy: Any) -> None:
    Path("nets_of_mine.py").write_text(
        "from torch import nn\n"
        "def build(classes, channels, image_size):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, classes))\n"
    )
    assert convoy("train", "nets_of_mine:build", *SMALL[1:], "--json", "--quiet").json["epochs"] == 2


def test_after_a_run_what_was_measured_stands_beside_the_plan(convoy: Any) -> None:
    done = convoy("train", *SMALL, "--strategy", "pipelined", "--ppv", "1")
    assert done.code == 0, done.err
    assert "predicted: " in done.err and "measured: " in done.err and "bwd was" in done.err
    (run,) = Path("runs").iterdir()
    plan, measured = (json.loads((run / f"{name}.json").read_text()) for name in ("plan", "measured"))
    assert plan["cuts"] == measured["cuts"] and plan["step_seconds"] != measured["step_seconds"]


def test_an_automatic_choice_is_recorded_and_resumed(convoy: Any) -> None:
    done = convoy("train", *SMALL, "--strategy", "pipelined", "--stages", "auto", "--max-staleness", "1")
    assert done.code == 0, done.err
    (run,) = Path("runs").iterdir()
    rows = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    (choice,) = [row for row in rows if row["kind"] == "decision" and row["name"] == "auto"]
    plan = json.loads((run / "plan.json").read_text())
    assert choice["data"]["cuts"] == plan["cuts"] and choice["data"]["accumulate"] == plan["accumulate"]
    assert max(stage["staleness"] for stage in plan["stages"]) <= 1
    assert tomllib.loads((run / "config.toml").read_text())["stages"] == "auto"
    again = convoy("train", "--resume", run)
    assert again.code == 0 and "nothing left to do" in again.err


@pytest.mark.parametrize("quiet", [False, True])
def test_a_warning_before_training_is_printed_once(convoy: Any, quiet: bool) -> None:
    options = ("--strategy", "pipelined", "--ppv", "1,2,3,4", "--correction", "spike")
    done = convoy(
        "train", *SMALL[:-2], "--lr", "0.001", *options, *(["--quiet"] if quiet else [])
    )  # Python's warnings are errors here
    assert done.code == 0, done.err
    assert done.err.count("spike compensation multiplies") == (not quiet)
