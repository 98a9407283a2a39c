import pytest

from convoy.schedule.action import Action
from convoy.schedule.schedule import Schedule
from convoy.schedule.walk import Deadlock, cycles, grid, idle_cycles, topological, walk

CHAIN = Schedule.parse(
    """
    driver | E 0 0.0 : => i@0
    worker 1 | F 1 0.0 : W1@0 i@0 => x@0
    worker 2 | F 2 0.0 : x@0 => g@0
    worker 1 | B 1 0.0 : W1@0 g@0 => u@0
    worker 1 | U 1 0.0 : W1@0 u@0 => W1@1
    """
)


def test_times_follow_from_reads_and_writes() -> None:
    walked = walk(CHAIN, lambda a: {"F": 1.0, "B": 2.0}.get(a.kind, 0.0), handover=0.25)
    times = {t.action.label: (t.start, t.end) for t in walked.timed}
    assert times["F1.0"] == (0.25, 1.25)  # the input comes from the driver
    assert times["F2.0"] == (1.5, 2.5)
    assert times["B1.0"] == (2.75, 4.75)
    assert walked.finish == 4.75
    assert walked.busy()["worker 1"] == pytest.approx(3 / 4.75)


def test_a_lane_keeps_its_order() -> None:
    schedule = Schedule.parse("w 1 | F 1 0.0 : =>\nw 1 | F 1 1.0 : =>")
    assert [t.start for t in walk(schedule, lambda a: 1.0).timed] == [0.0, 1.0]


def test_a_writer_waits_for_readers_on_other_lanes() -> None:
    schedule = Schedule.parse("w 1 | F 1 0.0 : W@0 =>\nw 2 | U 1 0.0 : => W@1")
    assert walk(schedule, lambda a: 3.0 if a.kind == "F" else 1.0).finish == 4.0


def test_a_deadlock_names_who_waits_for_what() -> None:
    schedule = Schedule.parse("w 1 | F 1 0.0 : a@0 => b@0\nw 2 | F 2 0.0 : b@0 => a@0")
    with pytest.raises(Deadlock, match=r"w 1: F1.0 waits for a@0, w 2: F2.0 waits for b@0"):
        topological(schedule)


def test_a_value_that_nobody_writes_is_found() -> None:
    with pytest.raises(Deadlock, match="waits for nothing-writes-it@7"):
        walk(Schedule.parse("w 1 | F 1 0.0 : nothing-writes-it@7 =>"), lambda a: 1.0)


def test_what_another_stage_wrote_is_there_in_the_next_cycle() -> None:
    at = {action.label: cycle for action, cycle in cycles(CHAIN).items()}
    assert at == {"E0.0": 0, "F1.0": 0, "F2.0": 1, "B1.0": 2, "U1.0": 2}
    assert idle_cycles(CHAIN) == {"worker 1": 1, "worker 2": 0}


def test_the_grid_marks_a_cell() -> None:
    marked = next(a for _, a in CHAIN if a.label == "F2.0")
    assert grid(CHAIN, mark=marked).splitlines() == [
        "cycle     0     1       2",
        "worker 1  F1.0          B1.0",
        "worker 2        >F2.0<",
    ]
    assert grid(Schedule()) == "(empty schedule)"
    update = Action.parse("U 1 0.0 : W1@0 u@0 => W1@1")
    assert ">U1.0<" in grid(CHAIN, mark=update)
