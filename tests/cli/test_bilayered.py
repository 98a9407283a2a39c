"""``convoy train --strategy bilayered`` on the digits: the run, its table and its options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def test_three_nodes_on_the_digits(convoy: Any, tmp_path: Path) -> None:
    asked = "train lenet5 --data digits --strategy bilayered --nodes 2,1,1 --update agwu-mended --round 4"
    made = convoy(
        *asked.split(), "--epochs", "2", "--limit", "300", "--threads", "1", "--run-dir", str(tmp_path), "--json"
    )
    assert made.code == 0
    values = json.loads(made.out)
    assert values["strategy"] == "bilayered"
    assert sum(record["samples"] for record in values["history"]) == 600
    assert "samples/s" in made.err and "share" in made.err
    assert values["plan"]["speeds"] == [2.0, 1.0, 1.0]
    rows = [json.loads(line) for line in (Path(values["run"]) / "events.jsonl").read_text().splitlines()]
    assert {row["data"]["message"] for row in rows if row["name"] == "arrival"} == {"goal", "join", "begin", "push"}
