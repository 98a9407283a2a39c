"""The modelled engine: known schedules in virtual time, and what holds for all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.engines.modelled import modelled
from convoy.errors import InternalError
from convoy.schedule.recurring import Recurring
from convoy.schedule.schedule import Schedule

DIAMOND = """
    driver | E 0 0.0 : => x@0
    {0} | F 1 0.0 : x@0 => a@0 b@0 c@0
    {0} | F 2 0.0 : a@0 => d@0
    {1} | F 3 0.0 : b@0 => e@0
    {1} | F 4 0.0 : c@0 => f@0
    {0} | L 5 0.0 : d@0 e@0 f@0 =>
    """
SECONDS = [0.0, 1.0, 4.0, 2.0, 2.0, 1.0]


def recurring(first: str = "pool", second: str = "pool", text: str = DIAMOND) -> Recurring:
    return Recurring(Schedule.parse(text.format(first, second)))


def workers(count: int) -> list[str]:
    return [f"worker {i + 1}" for i in range(count)]


@pytest.mark.parametrize(("count", "finish"), [(1, 10.0), (2, 6.0), (9, 6.0)])
def test_a_pool_takes_the_most_urgent_action_first(count: int, finish: float) -> None:
    assert modelled(recurring(), SECONDS, workers(count)).finish == finish


def test_lanes_keep_their_order_and_wait_for_each_other() -> None:
    found = modelled(recurring("conv", "nonconv"), SECONDS, ["conv", "nonconv"])
    assert found.finish == 6.0 and found.busy == {"conv": 6.0, "nonconv": 4.0}
    assert found.shares == (1.0, 4.0 / 6.0)
    swapped = modelled(recurring("conv", "nonconv"), [0.0, 1.0, 1.0, 3.0, 3.0, 1.0], ["conv", "nonconv"])
    assert swapped.finish == 8.0  # 1, then 3 + 3 on the other lane, then 1


def test_what_cannot_go_on_is_said() -> None:
    with pytest.raises(InternalError, match="5 actions are left and none can go"):
        modelled(recurring("elsewhere", "elsewhere"), SECONDS, workers(2))


@given(seconds=st.lists(st.floats(0.0, 5.0), min_size=5, max_size=5), count=st.integers(1, 4))
def test_no_schedule_beats_the_work_or_the_longest_chain(seconds: list[float], count: int) -> None:
    found = modelled(recurring(), [0.0, *seconds], workers(count))
    first, *middle, last = seconds
    assert found.finish >= max(sum(seconds) / count, first + max(middle) + last) - 1e-9
    assert found.finish <= sum(seconds) + 1e-9
    assert sum(found.busy.values()) == pytest.approx(sum(seconds))
