"""Ranking and advice, from numbers alone."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest

from convoy import BiLayered, Pipelined, Sequential, Speculative
from convoy.planning.comparison import Comparison, Refused, Row, advise, options_of, to_csv
from convoy.strategies.base import Strategy


def row(name: str, seconds: float, staleness: float = 0.0, options: str = "", own: bool = True) -> Row:
    return Row(name, options, seconds, (0.5, 1.0), (10, 20), staleness, "plain training", own)


def guessed(name: str, seconds: float) -> Row:
    return replace(row(name, seconds), exact=False, speculated=0.3, same_numbers="a guess")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([row("sequential", 1.0), row("pipelined", 1.2, 2)], "train sequentially: nothing here is faster"),
        ([row("pipelined", 0.95, 2), row("sequential", 1.0)], "train sequentially: the fastest alternative gains 5%"),
        ([row("DDP", 0.5, own=False), row("pipelined", 0.7, 2), row("sequential", 1.0)], "use DDP: predicted 1.40"),
        (
            [row("pipelined", 0.5, 2, "--stages 2"), row("DDP", 0.9, own=False), row("sequential", 1.0)],
            "--strategy pipelined --stages 2: 2.00 times sequential training, at weights up to 2 updates old",
        ),
        (
            [row("pipelined", 0.5, 2), row("DDP", 0.51, own=False), row("sequential", 1.0)],
            "DDP should be as fast without stale weights",
        ),
        (
            [row("pipelined", 0.50, 2, "--stages 2"), row("pipelined", 0.51, 1, "--clock 1f1b"), row("sequential", 1)],
            "--clock 1f1b: 1.96 times sequential training, at weights up to 1 update old",
        ),
        (
            [guessed("speculative", 0.50), row("sequential", 0.52, options="--inner tasks"), row("sequential", 1.0)],
            "--strategy sequential --inner tasks: 1.92 times sequential training",
        ),
        (
            [guessed("speculative", 0.50), row("sequential", 1.0)],
            "--strategy speculative: 2.00 times sequential training, with a guess; compare its accuracy",
        ),
        (
            [guessed("speculative", 0.30), row("sequential", 0.80, options="--inner tasks"), row("sequential", 1.0)],
            "train with --strategy sequential --inner tasks: 1.25 times",
        ),
        (
            [guessed("speculative", 0.50), row("sequential", 0.95, options="--inner tasks"), row("sequential", 1.0)],
            "--strategy speculative: 2.00 times",
        ),
        (
            [guessed("speculative", 0.30), row("DDP", 0.50, own=False), row("pipelined", 0.7, 2), row("sequential", 1)],
            "use DDP: predicted 1.40 times as fast as pipelined",
        ),
    ],
)
def test_advice(rows: list[Row], words: str) -> None:
    assert words in advise(rows, 1.0)


@pytest.fixture
def made() -> Comparison:
    rows = (row("pipelined", 0.5, 2, "--stages 2"), row("sequential", 1.0))
    return Comparison("Net", 32, 2, 1.0, 1.8, rows, (Refused("speculative", "it has no forecast"),), "take the first")


def test_table_names_what_cannot_be_planned_and_why(made: Comparison) -> None:
    lines = made.table().splitlines()
    assert lines[0] == "Net, batch 32, 2 cores: predicted, fastest first"
    assert lines[3].split()[:6] == ["pipelined", "--stages", "2", "500.0", "2.00", "3.60"]
    assert "50%–100%" in lines[3] and "0.0 kB" in lines[3]
    assert lines[-2:] == ["not possible: speculative: it has no forecast", "advice: take the first"]


def test_json_round_trip(made: Comparison) -> None:
    assert Comparison.from_dict(json.loads(made.to_json())) == made


def test_csv(made: Comparison) -> None:
    first, second = csv.DictReader(io.StringIO(to_csv(made.csv_rows())))
    assert first["strategy"] == "pipelined" and float(first["times_sequential"]) == 2.0
    assert first["worker_bytes"] == "10 20" and second["options"] == ""


def test_notes_stand_below_the_table(made: Comparison) -> None:
    noted = replace(made, rows=(replace(made.rows[0], note="cut before 3"), *made.rows[1:]))
    assert "\npipelined --stages 2: cut before 3\n" in noted.table()


@pytest.mark.parametrize(
    ("strategy", "usual", "options"),
    [
        (Sequential(), None, ""),
        (Sequential(inner="tasks"), None, "--inner tasks"),
        (Pipelined(ppv=(3, 5), clock="1f1b"), None, "--ppv 3,5 --clock 1f1b"),
        (Pipelined(stages="auto"), None, "--stages auto"),
        (
            Pipelined(stages="auto", clock="registers", accumulate=1),
            None,
            "--stages auto --clock registers --accumulate 1",
        ),
        (BiLayered(nodes=(2, 0.5)), None, "--nodes 2,0.5"),
        (Speculative(form="faithful"), Speculative(form="faithful"), ""),
    ],
)
def test_options_say_how_to_ask_for_it(strategy: Strategy, usual: Strategy | None, options: str) -> None:
    assert options_of(strategy, usual) == options
