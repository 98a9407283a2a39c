import pytest

from convoy.events.busy import BusyShares, busy_table
from convoy.events.event import Event


def test_shares_are_of_the_time_since_the_last_look():
    busy = BusyShares()
    busy(Event("action", "F", 0.0, 3.0, "worker 1"))
    busy(Event("action", "B", 3.0, 4.0, "worker 1"))
    busy(Event("action", "F", 0.0, 2.5, "worker 2"))
    busy(Event("step", "step", 0.0, 9.0, "worker 2"))
    assert busy.take(5.0) == pytest.approx({"worker 1": 0.8, "worker 2": 0.5})
    busy(Event("action", "F", 5.0, 6.0, "worker 2"))
    assert busy.take(2.0) == pytest.approx({"worker 1": 0.0, "worker 2": 0.5})
    assert busy.take(0.0) == {}


def test_the_table_has_a_bar_per_lane():
    assert busy_table({"worker 1": 0.5, "w": 1.2}, width=4) == "worker 1  ##..   50.0%\nw         ####  120.0%"
    assert busy_table({}) == ""
