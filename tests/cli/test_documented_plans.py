"""The plan tables in README and tour have the lines and columns that are printed; numbers are those of some machine."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from convoy.strategies.pipelined.plan import PipelinePlan, StagePlan

ROOT = Path(__file__).parents[2]


def stage(index: int, layers: str, first: str, size: int, delay: int, kept: int, handed: int) -> StagePlan:
    return StagePlan(index, first, "", layers, 0, size, delay, float(delay), handed, kept, 1e-3, 2e-3)


PLAN = PipelinePlan(
    model="LeNet5", batch_size=32, clock="registers", placement="colocated", accumulate=1, delays=(2, 0),
    links=((1, 2),), threads_per_worker=1, cuts=("conv2",), stale_share=0.003,
    stages=(
        stage(1, "1", "conv1", 624, 2, 1_150_000, 150_000),
        stage(2, "2–5", "conv2", 246_000, 0, 540_000, 40),
    ),
    sequential_seconds=4e-3, step_seconds=3e-3, everyone_seconds=3e-3, threads=2, bottleneck="worker 2", advice="…",
)  # fmt: skip


def shape(table: str) -> list[str]:
    """The lines without numbers and widths, and without what is advised."""
    text = re.sub(r"advice: .*", "advice:", table)
    text = re.sub(r"[-+]?\d[\d.]*", "#", text.replace("2–5", "#"))
    return [" ".join(line.replace("-", " ").split()) for line in text.splitlines()]


@pytest.mark.parametrize("page", ["README.md", "docs/tour.md"])
def test_the_tables_shown_are_those_printed(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    shown = re.findall(r"^    LeNet5, batch .*\n(?:    .+\n)+", text, re.MULTILINE)
    measured = replace(PLAN, step_seconds=4e-3)
    assert [shape(each) for each in shown] == [shape(PLAN.table()), shape(PLAN.beside(measured))]


def test_every_column_is_explained() -> None:
    page = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    explained = re.findall(r"^\| ([^|]+) \|", page.partition("| column |")[2].partition("\n\n")[0], re.MULTILINE)
    columns = re.split(r"\s{2,}", PLAN.table().splitlines()[1].strip())
    assert [column for row in explained for column in row.split(", ")] == columns
