from __future__ import annotations

import threading
import time

import pytest

from convoy.errors import OptionError
from convoy.graph.stage_times import Stage, stage_seconds


def sleeping(forward: float, backward: float, log: list[str] | None = None, name: str = "") -> Stage:
    def run_forward() -> str:
        time.sleep(forward)
        if log is not None:
            log.append(name)
        return name

    def run_backward(kept: str) -> None:
        assert kept == name
        time.sleep(backward)

    return run_forward, run_backward


def test_times_of_every_stage() -> None:
    candidates = [[sleeping(0.02, 0.06), sleeping(0.04, 0.0)], [sleeping(0.0, 0.015)]]
    (first, second), (third,) = stage_seconds(candidates, repeats=3)
    assert 0.02 <= first.forward_seconds < 0.05 and 0.06 <= first.backward_seconds < 0.1
    assert 0.04 <= second.forward_seconds < 0.06 and second.backward_seconds < 0.02
    assert third.seconds == third.forward_seconds + third.backward_seconds
    assert first.spread < 0.5


def test_candidates_take_turns_and_change_order() -> None:
    log: list[str] = []
    stage_seconds([[sleeping(0, 0, log, "a1"), sleeping(0, 0, log, "a2")], [sleeping(0, 0, log, "b")]], repeats=2)
    assert log == ["a1", "a2", "b", "b", "a1", "a2", "a1", "a2", "b"]  # the first round warms up


def test_the_first_round_does_not_count() -> None:
    pauses = iter([0.2, 0.01, 0.01])

    def forward() -> None:
        time.sleep(next(pauses))

    ((found,),) = stage_seconds([[(forward, lambda kept: None)]], repeats=2)
    assert found.forward_seconds < 0.1


def test_the_budget_ends_it() -> None:
    log: list[str] = []
    stage_seconds([[sleeping(0.05, 0.0, log, "a")]], repeats=100, budget_seconds=0.2)
    assert 2 <= len(log) <= 4
    log.clear()
    stage_seconds([[sleeping(0.0, 0.0, log, "a")]], repeats=100, budget_seconds=0.0)
    assert len(log) == 2


def test_together_each_stage_has_a_thread_and_they_overlap() -> None:
    seen: set[int] = set()
    meet = threading.Barrier(2, timeout=10)

    def stage() -> Stage:
        def forward() -> None:
            seen.add(threading.get_ident())
            meet.wait()  # would never return if the stages ran one after the other

        return forward, lambda kept: time.sleep(0.01)

    ((first, second),) = stage_seconds([[stage(), stage()]], repeats=2, together=True)
    assert len(seen) >= 2 and threading.get_ident() not in seen
    assert first.backward_seconds >= 0.01 <= second.backward_seconds


@pytest.mark.parametrize("together", [False, True])
def test_an_error_reaches_the_caller(together: bool) -> None:
    def broken() -> None:
        raise ValueError("broken stage")

    with pytest.raises(ValueError, match="broken stage"):
        stage_seconds([[sleeping(0, 0), (broken, lambda kept: None)]], together=together)


def test_nothing_to_measure_and_refusals() -> None:
    assert stage_seconds([]) == ()
    with pytest.raises(OptionError, match="repeats is 0"):
        stage_seconds([[sleeping(0, 0)]], repeats=0)
