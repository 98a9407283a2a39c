"""``convoy plan``: the plan as table, JSON, CSV and grid; nothing is written; refusals."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from convoy.cli.config import merge
from convoy.cli.plan import _shape

SMALL = ("lenet5", "--batch-size", "8", "--workers", "2")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("PROFILE_SECONDS", "TRIAL_SECONDS", "WHOLE_SECONDS"):
        monkeypatch.setattr(f"convoy.strategies.pipelined.balance_bench.{name}", 0.2)
    yield


@pytest.mark.smoke
def test_without_a_strategy_a_ranked_table(convoy: Any) -> None:
    done = convoy("plan", *SMALL)
    assert done.code == 0, done.err
    assert done.out.startswith("LeNet5, batch 8, 2 cores: predicted, fastest first\nstrategy")
    assert "\nadvice: " in done.out and "DDP" in done.out
    assert "measuring lenet5" in done.err
    assert not list(Path().iterdir())  # nothing is written


@pytest.mark.parametrize(("others", "told"), [(0.1, False), (1.5, True), (None, False)])
def test_a_busy_machine_is_told(convoy: Any, monkeypatch: pytest.MonkeyPatch, others: float | None, told: bool) -> None:
    monkeypatch.setattr("convoy.training.load.OtherLoad.cores", lambda _: others)
    done = convoy("plan", *SMALL, "--strategy", "pipelined", "--ppv", "1")
    assert done.code == 0 and ("other programs kept 1.5 cores busy" in done.err) == told


def test_one_pipeline_with_its_grid(convoy: Any) -> None:
    done = convoy("plan", *SMALL, "--strategy", "pipelined", "--ppv", "1", "--grid", "--quiet")
    assert done.code == 0 and done.err == ""
    assert "worker 1  F1.0  F1.1       F1.2 B1.0  F1.3 B1.1  B1.2       B1.3" in done.out
    assert "predicted: " in done.out


def test_json(convoy: Any) -> None:
    plan = convoy("plan", *SMALL, "--strategy", "pipelined", "--ppv", "2", "--json").json
    assert plan["strategy"] == "pipelined" and len(plan["stages"]) == 2
    assert plan["step_seconds"] > 0 and "grid" not in plan
    ranked = convoy("plan", *SMALL, "--json").json
    assert ranked["strategy"] == "comparison" and {"rows", "refused", "advice"} <= set(ranked)


def test_csv(convoy: Any) -> None:
    done = convoy("plan", *SMALL, "--csv", "--strategy", "pipelined", "--ppv", "1")
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert [row["stage"] for row in rows] == ["1", "2"] and float(rows[0]["staleness"]) == 2.0


def test_max_memory_is_obeyed(convoy: Any) -> None:
    done = convoy("plan", *SMALL, "--strategy", "pipelined", "--ppv", "1", "--max-memory", "10kB")
    assert done.code == 2 and "holds" in done.error and "10.0 kB" in done.error
    assert "1f1b" in done.hint


def test_max_staleness_is_obeyed(convoy: Any) -> None:
    done = convoy("plan", *SMALL, "--strategy", "pipelined", "--ppv", "1", "--max-staleness", "1")
    assert done.code == 2
    assert done.error == "this pipeline reads weights that are 2 updates old, and max_staleness is 1"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--csv", "--json"), "--csv and --json are both given"),
        (("--grid",), "--grid draws the schedule of a pipeline"),
        (("--workers", "0"), "workers is 0"),
        (("--data", "cifar"), "there is no data set of the kind 'cifar'"),
        (("--strategy", "pipelined", "--stages", "some"), "--stages"),
        (("--stages", "2"), "--stages does not apply"),
    ],
)
def test_refusals(convoy: Any, arguments: tuple[str, ...], words: str) -> None:
    done = convoy("plan", "lenet5", *arguments)
    assert done.code == 2 and words in done.error


@pytest.mark.parametrize(
    ("given", "shape"),
    [
        ({"model": "resnet56"}, (3, 32, 10)),
        ({"model": "lenet5"}, (1, 28, 10)),
        ({"model": "resnet18"}, (3, 224, 1000)),
        ({"model": "resnet18", "data": "cifar100"}, (3, 32, 100)),
        ({"model": "resnet18", "data": "cifar100", "image_size": 64}, (3, 64, 100)),
        ({"model": "resnet56", "image_size": 48}, (3, 48, 10)),
    ],
)
def test_to_plan_no_data_are_needed(given: dict[str, Any], shape: tuple[int, int, int]) -> None:
    assert _shape(merge(given), "data" in given) == shape


def test_a_bound_on_the_average_is_said_to_be_one(convoy: Any) -> None:
    bounded = convoy(
        "plan", *SMALL, "--strategy", "pipelined", "--ppv", "1", "--accumulate", "4", "--max-staleness", "0.2"
    )
    assert bounded.error == (
        "this pipeline reads weights that are 0.5 updates old on average, and max_staleness is 0.2"
    )
    shown = " ".join(convoy("train", "--strategy", "pipelined", "--help").out.replace("│", " ").split())
    assert "weights that are on average older than so many updates" in shown


def test_help_shows_what_applies(convoy: Any) -> None:
    done = convoy("plan", "--help")
    assert done.code == 0 and "--workers" in done.out and "--grid" in done.out and "--resume" not in done.out
    assert "Usage: convoy plan MODEL" in done.out
