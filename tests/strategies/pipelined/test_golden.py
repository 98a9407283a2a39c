# ruff: noqa: E501  (drawings are as wide as they are)
"""Schedules written down by hand from the definitions (SYSTEMS.md 1.1), and the drawings of the documentation.

A row gives the order of work of one stage and the version of the weights that each action reads: ``F3/1@2`` is the
forward pass of part 1 of batch 3 with version 2, ``|`` a drain. A stage with delay d works in the order F(0) ... F(d - 1),
then F(u + d), B(u), ...; F(u) reads max(v, batch(max(0, u - d))), B(u) reads batch(u). In a drawing an action stands in
the first cycle in which its stage is that far, has done nothing of the kind, and its neighbours were done in the cycle before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from convoy.schedule.schedule import Entry, Schedule
from convoy.schedule.walk import grid
from convoy.strategies.pipelined.clock import PipelineSchedule, delays

DOCS = Path(__file__).parents[3] / "docs"
UNEVEN = (2, 2, 2, 2, 2, 1)
"""Parts of six mini-batches with accumulate=2, of which the last one has a single sample. Drained before batch 3."""

ROWS: dict[tuple[str, int, int, tuple[int, ...], int | None], str] = {
    # 1f1b, K = 3: delays 3, 2, 1, 0.
    ("1f1b", 0, 3, (1,) * 5, None): """
        F0@0 F1@0 F2@0 F3@0 B0@0 F4@1 B1@1 | B2@2 B3@3 B4@4
        F0@0 F1@0 F2@0 B0@0 F3@1 B1@1 F4@2 B2@2 | B3@3 B4@4
        F0@0 F1@0 B0@0 F2@1 B1@1 F3@2 B2@2 F4@3 B3@3 | B4@4
        F0@0 B0@0 F1@1 B1@1 F2@2 B2@2 F3@3 B3@3 F4@4 B4@4 |
    """,
    # slack 1: delays 4, 3, 2, 0.
    ("1f1b", 1, 3, (1,) * 6, None): """
        F0@0 F1@0 F2@0 F3@0 F4@0 B0@0 F5@1 B1@1 | B2@2 B3@3 B4@4 B5@5
        F0@0 F1@0 F2@0 F3@0 B0@0 F4@1 B1@1 F5@2 B2@2 | B3@3 B4@4 B5@5
        F0@0 F1@0 F2@0 B0@0 F3@1 B1@1 F4@2 B2@2 F5@3 B3@3 | B4@4 B5@5
        F0@0 B0@0 F1@1 B1@1 F2@2 B2@2 F3@3 B3@3 F4@4 B4@4 F5@5 B5@5 |
    """,
    # slack 1, drained before batch 3: its version, 3, is the oldest that is read from then on.
    ("1f1b", 1, 2, (1,) * 7, 3): """
        F0@0 F1@0 F2@0 | B0@0 B1@1 B2@2 | F3@3 F4@3 F5@3 F6@3 B3@3 | B4@4 B5@5 B6@6
        F0@0 F1@0 F2@0 B0@0 | B1@1 B2@2 | F3@3 F4@3 F5@3 B3@3 F6@4 B4@4 | B5@5 B6@6
        F0@0 B0@0 F1@1 B1@1 F2@2 B2@2 | | F3@3 B3@3 F4@4 B4@4 F5@5 B5@5 F6@6 B6@6 |
    """,
    # registers, K = 1, two parts: delays 2, 0 in parts.
    ("registers", 0, 1, UNEVEN, 3): """
        F0@0 F0/1@0 F1@0 B0@0 F1/1@0 B0/1@0 F2@1 B1@1 F2/1@1 B1/1@1 | B2@2 B2/1@2 | F3@3 F3/1@3 F4@3 B3@3 F4/1@3 B3/1@3 F5@4 B4@4 | B4/1@4 B5@5
        F0@0 B0@0 F0/1@0 B0/1@0 F1@1 B1@1 F1/1@1 B1/1@1 F2@2 B2@2 F2/1@2 B2/1@2 | | F3@3 B3@3 F3/1@3 B3/1@3 F4@4 B4@4 F4/1@4 B4/1@4 F5@5 B5@5 |
    """,
    # 1f1b, K = 3, two parts: delays 3, 2, 1, 0 in parts.
    ("1f1b", 0, 3, UNEVEN, 3): """
        F0@0 F0/1@0 F1@0 F1/1@0 B0@0 F2@0 B0/1@0 F2/1@1 B1@1 | B1/1@1 B2@2 B2/1@2 | F3@3 F3/1@3 F4@3 F4/1@3 B3@3 F5@3 B3/1@3 | B4@4 B4/1@4 B5@5
        F0@0 F0/1@0 F1@0 B0@0 F1/1@0 B0/1@0 F2@1 B1@1 F2/1@1 B1/1@1 | B2@2 B2/1@2 | F3@3 F3/1@3 F4@3 B3@3 F4/1@3 B3/1@3 F5@4 B4@4 | B4/1@4 B5@5
        F0@0 F0/1@0 B0@0 F1@0 B0/1@0 F1/1@1 B1@1 F2@1 B1/1@1 F2/1@2 B2@2 | B2/1@2 | F3@3 F3/1@3 B3@3 F4@3 B3/1@3 F4/1@4 B4@4 F5@4 B4/1@4 | B5@5
        F0@0 B0@0 F0/1@0 B0/1@0 F1@1 B1@1 F1/1@1 B1/1@1 F2@2 B2@2 F2/1@2 B2/1@2 | | F3@3 B3@3 F3/1@3 B3/1@3 F4@4 B4@4 F4/1@4 B4/1@4 F5@5 B5@5 |
    """,
}  # fmt: skip

DRAWINGS: dict[tuple[str, int, int, tuple[int, ...], int | None], str] = {
    ("1f1b", 0, 3, (1,) * 5, None): """
cycle     0     1     2     3          4          5          6          7          8          9          10    11    12
worker 1  F1.0  F1.1  F1.2  F1.3                             B1.0 F1.4  B1.1       B1.2                  B1.3        B1.4
worker 2        F2.0  F2.1  F2.2                  B2.0 F2.3  B2.1       F2.4 B2.2             B2.3             B2.4
worker 3              F3.0  F3.1       B3.0 F3.2  B3.1       F3.3 B3.2             F3.4 B3.3             B3.4
worker 4                    F4.0 B4.0  F4.1 B4.1  F4.2 B4.2             F4.3 B4.3             F4.4 B4.4
""",
    ("1f1b", 1, 3, (1,) * 6, None): """
cycle     0     1     2     3          4          5          6          7          8          9          10    11    12
worker 1  F1.0  F1.1  F1.2  F1.3       F1.4                  B1.0 F1.5  B1.1       B1.2                  B1.3  B1.4  B1.5
worker 2        F2.0  F2.1  F2.2       F2.3       B2.0 F2.4  B2.1       F2.5 B2.2             B2.3       B2.4  B2.5
worker 3              F3.0  F3.1       F3.2 B3.0  F3.3 B3.1  F3.4 B3.2             F3.5 B3.3  B3.4       B3.5
worker 4                    F4.0 B4.0  F4.1 B4.1  F4.2 B4.2  F4.3 B4.3  F4.4 B4.4             F4.5 B4.5
""",
    # Between cycles 6 and 7 the drain: stage 1 begins batch 3 when its last update is made.
    ("registers", 0, 1, UNEVEN, 3): """
cycle     0     1          2              3              4              5              6              7            8          9              10             11             12         13
worker 1  F1.0  F1.0/1     F1.1 B1.0      F1.1/1 B1.0/1  F1.2 B1.1      F1.2/1 B1.1/1  B1.2           B1.2/1 F1.3  F1.3/1     F1.4 B1.3      F1.4/1 B1.3/1  F1.5 B1.4      B1.4/1     B1.5
worker 2        F2.0 B2.0  F2.0/1 B2.0/1  F2.1 B2.1      F2.1/1 B2.1/1  F2.2 B2.2      F2.2/1 B2.2/1               F2.3 B2.3  F2.3/1 B2.3/1  F2.4 B2.4      F2.4/1 B2.4/1  F2.5 B2.5
""",
    ("1f1b", 0, 1, UNEVEN, 3): """
cycle     0     1          2              3              4              5              6              7            8          9              10             11             12         13
worker 1  F1.0  F1.0/1     B1.0 F1.1      B1.0/1 F1.1/1  B1.1 F1.2      B1.1/1 F1.2/1  B1.2           B1.2/1 F1.3  F1.3/1     B1.3 F1.4      B1.3/1 F1.4/1  B1.4 F1.5      B1.4/1     B1.5
worker 2        F2.0 B2.0  F2.0/1 B2.0/1  F2.1 B2.1      F2.1/1 B2.1/1  F2.2 B2.2      F2.2/1 B2.2/1               F2.3 B2.3  F2.3/1 B2.3/1  F2.4 B2.4      F2.4/1 B2.4/1  F2.5 B2.5
""",
}  # fmt: skip


def runs(
    clock: str, slack: int, k: int, parts: tuple[int, ...], drained: int | None, placement: str = "colocated"
) -> Iterator[list[Entry]]:
    """What is emitted up to each drain, and by it."""
    links = tuple((i, i + 1) for i in range(1, k + 1))
    made = PipelineSchedule(delays(k + 1, clock, slack), links, (1, k + 1), placement)
    entries: list[Entry] = []
    for batch, count in enumerate(parts):
        if batch == drained:
            yield entries
            yield made.drain()
            entries = []
        entries.extend(made.enter(batch, count))
    yield entries
    yield made.drain()


def drawn(*case: object, placement: str = "colocated") -> str:
    schedule = Schedule()
    for entries in runs(*case, placement=placement):  # type: ignore[arg-type]
        schedule.extend(entries)
    return grid(schedule)


@pytest.mark.parametrize("case", ROWS, ids=str)
def test_order_and_versions_of_each_stage(case: tuple[str, int, int, tuple[int, ...], int | None]) -> None:
    stages = range(1, case[2] + 2)
    rows = {
        stage: " | ".join(
            " ".join(
                f"{a.kind}{a.batch}{f'/{a.part}' * (a.part > 0)}@{ref.version}"
                for _, a in entries
                for ref in a.reads
                if a.kind in "FB" and ref.name == f"W{stage}"
            )
            for entries in runs(*case)
        )
        for stage in stages
    }
    assert [rows[stage].split() for stage in stages] == [row.split() for row in ROWS[case].strip().splitlines()]


@pytest.mark.parametrize("case", DRAWINGS, ids=str)
def test_the_program_draws_what_was_drawn_by_hand(case: tuple[str, int, int, tuple[int, ...], int | None]) -> None:
    assert drawn(*case) == DRAWINGS[case].strip()


REGISTERS, ONE_F_ONE_B = (("registers", 0, 1, (1,) * 4, None), ("1f1b", 0, 1, (1,) * 4, None))


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("pipelined.md", [drawn(*REGISTERS), drawn(*REGISTERS, placement="split"), drawn(*ONE_F_ONE_B)]),
        ("tour.md", [drawn(*REGISTERS)]),
    ],
    ids=["pipelined.md", "tour.md"],
)
def test_the_documents_show_what_the_program_draws(page: str, expected: list[str]) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    found = re.findall(r"^    cycle .*\n(?:    worker .*\n)+", text, re.MULTILINE)
    assert [re.sub(r"(?m)^    ", "", each).strip() for each in found] == expected
