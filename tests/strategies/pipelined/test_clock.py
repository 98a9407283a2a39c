"""The schedule against the drawing of the design and the closed formulas of the publication."""

from math import ceil
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.errors import OptionError
from convoy.schedule.action import Action
from convoy.schedule.schedule import Schedule
from convoy.schedule.walk import cycles, grid, topological
from convoy.strategies.pipelined import Pipelined
from convoy.strategies.pipelined.clock import PipelineSchedule, age, delays, staleness_in_updates


def pipeline(stages: int, clock: str = "registers", slack: int = 0, placement: str = "colocated") -> PipelineSchedule:
    links = tuple((i, i + 1) for i in range(1, stages))
    return PipelineSchedule(delays(stages, clock, slack), links, (1, stages) if stages > 1 else (1,), placement)


def run(clock: PipelineSchedule, parts: list[int], drains: set[int] = frozenset()) -> Schedule:  # type: ignore[assignment]
    schedule = Schedule()
    for batch, count in enumerate(parts):
        if batch in drains:
            schedule.extend(clock.drain())
        schedule.extend(clock.enter(batch, count))
    schedule.extend(clock.drain())
    return schedule


def read_version(action: Action) -> int:
    return next(ref.version for ref in action.reads if ref.name.startswith("W"))


DRAWING = """
cycle     0     1          2          3          4          5
worker 1  F1.0  F1.1       F1.2 B1.0  F1.3 B1.1  B1.2       B1.3
worker 2        F2.0 B2.0  F2.1 B2.1  F2.2 B2.2  F2.3 B2.3
"""


def test_the_published_clock_is_the_drawing() -> None:
    assert grid(run(pipeline(2), [1] * 4)) == DRAWING.strip()


@pytest.mark.parametrize(
    ("clock", "slack", "expected"),
    [
        ("registers", 0, (6, 4, 2, 0)),
        ("1f1b", 0, (3, 2, 1, 0)),
        ("1f1b", 1, (4, 3, 2, 0)),
        ("1f1b", 3, (6, 4, 2, 0)),
    ],
)
def test_delays(clock: str, slack: int, expected: tuple[int, ...]) -> None:
    assert delays(4, clock, slack) == expected


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"slack": 2}, "slack is 2, and a pipeline of 2 stages has 1 cut"),
        ({"slack": 9, "stages": 4}, "slack is 9, and a pipeline of 4 stages has 3 cuts"),
        ({"slack": 1, "stages": 1}, "slack is 1, and a pipeline of 1 stage has 0 cuts"),
        ({"slack": 3, "cuts": ["2", "4"]}, "slack is 3, and a pipeline of 3 stages has 2 cuts"),
        ({"slack": 2, "ppv": [7]}, "slack is 2, and a pipeline of 2 stages has 1 cut"),
    ],
)
def test_slack_above_the_number_of_cuts_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=f"^{words} ") as caught:
        Pipelined(clock="1f1b", **fields)
    assert caught.value.hint == "give a number from 0 to the number of cuts"
    Pipelined(clock="1f1b", **{**fields, "slack": 0})


def test_slack_up_to_the_number_of_cuts() -> None:
    assert Pipelined(clock="1f1b", slack=1).slack == 1
    assert Pipelined(clock="1f1b", slack=2, cuts=["2", "4"]).slack == 2
    assert Pipelined(clock="1f1b", slack=9, stages="auto").slack == 9  # how many cuts there may be shows later


def test_an_unknown_clock_is_refused() -> None:
    with pytest.raises(OptionError, match="'2f2b'"):
        delays(2, "2f2b")


@given(st.integers(0, 4), st.integers(1, 12), st.sampled_from(["colocated", "split"]))
def test_cycles_of_the_publication(k: int, batches: int, placement: str) -> None:
    """Forward of t at stage i in cycle t + i - 1; backward in cycle t + 2K - i + 1 while batches keep coming."""
    schedule = run(pipeline(k + 1, placement=placement), [1] * batches)
    for action, cycle in cycles(schedule).items():
        i, t = int(action.subject), action.batch
        if action.kind == "F":
            assert cycle == t + i - 1
        if action.kind == "B":
            assert cycle == t + 2 * k - i + 1


@given(
    st.integers(0, 4),
    st.sampled_from([("registers", 0), ("1f1b", 0), ("1f1b", 1), ("1f1b", 9)]),
    st.lists(st.integers(1, 4), min_size=1, max_size=10),
    st.sets(st.integers(1, 9), max_size=2),
)
def test_versions_follow_the_closed_formula(k: int, clock: tuple[str, int], parts: list[int], drains: set[int]) -> None:
    """Forward of part u at a stage with delay d reads max(v, batch(max(0, u - d))), backward reads batch(u), where v
    is the version at the last drain and parts count from it."""
    stage_delays = delays(k + 1, *clock)
    schedule = run(pipeline(k + 1, *clock), parts, drains)
    batch_of = [b for b, count in enumerate(parts) for _ in range(count)]
    first_unit = [sum(parts[:b]) for b in range(len(parts))]
    for _, action in schedule:
        if action.kind not in "FB":
            continue
        u = first_unit[action.batch] + action.part
        drained_at = max((b for b in drains if b <= action.batch), default=0)
        d = stage_delays[int(action.subject) - 1]
        expected = batch_of[u] if action.kind == "B" else max(drained_at, batch_of[max(0, u - d)])
        assert read_version(action) == expected


@given(st.integers(0, 4), st.integers(0, 5), st.lists(st.integers(1, 4), min_size=1, max_size=8))
def test_every_part_goes_once_through_every_stage(k: int, slack: int, parts: list[int]) -> None:
    clock = pipeline(k + 1, "1f1b", slack)
    schedule = run(clock, parts)
    work = [(a.kind, a.subject, a.batch, a.part) for _, a in schedule]
    expected = [
        (kind, str(stage), batch, part)
        for stage in range(1, k + 2)
        for batch, count in enumerate(parts)
        for part in range(count)
        for kind in "FB"
    ]
    expected += [("U", str(stage), batch, 0) for stage in range(1, k + 2) for batch in range(len(parts))]
    assert sorted(w for w in work if w[0] != "E") == sorted(expected)
    assert len(topological(schedule)) == len(schedule), "no deadlock"
    assert clock.in_flight == 0


@given(st.integers(1, 4), st.integers(3, 10))
def test_both_placements_do_the_same_in_program_order(k: int, batches: int) -> None:
    colocated = [a for _, a in run(pipeline(k + 1), [1] * batches)]
    split = [a for _, a in run(pipeline(k + 1, placement="split"), [1] * batches)]
    assert colocated == split


def test_workers() -> None:
    assert pipeline(3).lanes() == ("worker 1", "worker 2", "worker 3")
    assert pipeline(3, placement="split").lanes() == ("worker 1f", "worker 1b", "worker 2f", "worker 2b", "worker 3")


@given(st.integers(1, 4), st.integers(1, 4), st.sampled_from(["registers", "1f1b"]))
def test_staleness_in_updates_is_at_most_delay_over_parts(k: int, m: int, clock: str) -> None:
    stage_delays = delays(k + 1, clock)
    worst = [0] * (k + 1)
    for _, action in run(pipeline(k + 1, clock), [m] * 10):
        if action.kind == "F":
            stage = int(action.subject) - 1
            worst[stage] = max(worst[stage], action.batch - read_version(action))
    assert worst == [ceil(d / m) for d in stage_delays]
    assert staleness_in_updates(stage_delays, m) == tuple(d / m for d in stage_delays)


@pytest.mark.parametrize(
    ("k", "m", "clock"), [(1, 2, "1f1b"), (1, 4, "registers"), (3, 4, "1f1b"), (3, 4, "registers")]
)
def test_staleness_in_updates_is_an_average(k: int, m: int, clock: str) -> None:
    """Once the pipeline is full, d / m is how old weights are on average; single forward passes differ from it."""
    ages: list[list[int]] = [[] for _ in range(k + 1)]
    for _, action in run(pipeline(k + 1, clock), [m] * 20):
        if action.kind == "F" and action.batch >= 10:
            ages[int(action.subject) - 1].append(action.batch - read_version(action))
    average = [sum(each) / len(each) for each in ages]
    assert average == list(staleness_in_updates(delays(k + 1, clock), m))


def test_half_of_the_forward_passes_read_weights_a_whole_update_old_where_the_average_is_half() -> None:
    forwards = [a for _, a in run(pipeline(2, "1f1b"), [2] * 20) if (a.kind, a.subject) == ("F", "1") and a.batch]
    assert [a.batch - read_version(a) for a in forwards] == [1, 0] * 19


@pytest.mark.parametrize(
    ("staleness", "words"),
    [(2.0, "2 updates old"), (1.0, "1 update old"), (0.5, "0.5 updates old on average"), (0.0, "0 updates old")],
)
def test_an_average_is_said_to_be_one(staleness: float, words: str) -> None:
    assert age(staleness) == words
