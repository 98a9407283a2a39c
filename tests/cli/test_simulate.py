"""``convoy simulate``: the table, JSON, a trace, sweeps, calibration, and what is refused."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

SMALL = ("simulate", "resnet18", "--batch-size", "2", "--image-size", "64")


def test_a_table_for_people_and_json_for_programs(convoy: Any) -> None:
    shown = convoy(*SMALL, "--turns", "planned")
    assert shown.code == 0 and "times serial" in shown.out and "layer1.0.conv1" in shown.out
    values = convoy(*SMALL, "--turns", "planned", "--json").json
    assert values["model"] == "resnet18" and values["batch_size"] == 2 and values["turns"] == "planned"
    assert values["seconds"] > 0 and {"clocks", "bound_by", "host_row_hits"} <= set(values["layers"][0])
    assert "layer1.0.conv1" not in convoy(*SMALL, "--turns", "serial", "--no-layers").out


def test_a_trace(convoy: Any, tmp_path: Any) -> None:
    assert convoy(*SMALL, "--turns", "idle", "--trace", tmp_path / "t.json.gz").code == 0
    with gzip.open(tmp_path / "t.json.gz", "rt") as file:
        rows = json.load(file)
    assert {"host", "units"} <= {row["args"].get("name") for row in rows if row["ph"] == "M"}


def test_sweeps(convoy: Any) -> None:
    rows = convoy(*SMALL, "--turns", "idle", "--sweep", "groups=1,2", "--json").json["rows"]
    assert [row["sweep"] for row in rows] == ["groups 1", "groups 2"]
    assert rows[0]["seconds"] == pytest.approx(rows[0]["serial_seconds"])
    costs = convoy(*SMALL, "--turns", "serial", "--sweep", "switch-cost=1,4", "--json").json["rows"]
    assert costs[0]["seconds"] < costs[1]["seconds"]


def test_a_host_measured_and_used(convoy: Any, tmp_path: Any) -> None:
    net = ("simulate", "lenet5", "--batch-size", "2", "--image-size", "32", "--classes", "10")
    made = convoy(*net, "--calibrate", tmp_path / "p.json", "--device", "cpu", "--json")
    assert made.code == 0 and made.json["tasks"] == 14
    measured = json.loads((tmp_path / "p.json").read_text())["seconds"]
    used = convoy(*net, "--profile", tmp_path / "p.json", "--turns", "serial", "--json").json
    assert used["seconds"] == pytest.approx(sum(measured.values()), rel=0.05)


def test_two_engines(convoy: Any) -> None:
    net = ("simulate", "plain6", "--hardware", "two-engines", "--image-size", "16", "--batch-size", "4")
    shown = convoy(*net)
    assert shown.code == 0 and "accepted 90%" in shown.out and "source: Park and Suh" in shown.out
    rows = convoy(*net, "--sweep", "units=64,128", "--json").json["rows"]
    assert {row["units"] for row in rows} == {64, 128} and all(len(row["speculated"]) == 4 for row in rows)


@pytest.mark.parametrize(
    ("options", "words", "hint"),
    [
        (("--turns", "fair"), "--turns is 'fair', but must be one of serial", "--turns serial"),
        (("--groups", "0"), "--groups is 0", "--groups 4"),
        (("--batch-size", "0"), "--batch-size is 0", "--batch-size 32"),
        (("--classes", "0"), "--classes is 0", "--classes 1000"),
        (("--hardware", "v200"), "no hardware 'v200'", "v100-pim4"),
        (("--hardware", "."), ". is a folder", ".toml"),
        (("--sweep", "colour=1"), "must be WHAT=LIST", "groups=1,2"),
        (("--sweep", "groups=1,x"), "--sweep has 'x' for groups", "above 0"),
        (("--sweep", "units=64"), "--sweep units is of engines, not of v100-pim4", "--hardware two-engines"),
        (("--hardware", "two-engines", "--sweep", "groups=2"), "--sweep groups is of units in memory", "units=64"),
        (("--profile", "none.json"), "cannot be read", ""),
    ],
)
def test_what_cannot_be_is_refused(convoy: Any, options: tuple[str, ...], words: str, hint: str) -> None:
    refused = convoy("simulate", "resnet18", *options)
    assert refused.code == 2 and words in refused.error and hint in refused.err.partition("hint: ")[2]
