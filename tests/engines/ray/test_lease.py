"""Silence: who is found dead, when, and who is not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from convoy.engines.ray.lease import Leases


def test_a_lease_ends_after_its_seconds_and_not_before() -> None:
    leases = Leases(10.0)
    leases.look(100.0)
    leases.heard("a")
    for now in range(101, 111):
        assert leases.look(now) == []
    assert leases.look(110.5) == ["a"] and leases.silent("a") == 10.5


def test_being_heard_renews_it() -> None:
    leases = Leases(3.0, stride=1.0)
    for now in range(20):
        if now % 3 == 0:
            leases.heard("a")
        leases.heard("b") if now == 0 else None
        assert ("a" in leases.look(now)) is False
    assert leases.look(20) == ["b"]


def test_who_was_dropped_is_not_missed() -> None:
    leases = Leases(1.0)
    leases.heard("a")
    leases.drop("a")
    leases.drop("a")
    assert [leases.look(now) for now in range(5)] == [[]] * 5 and list(leases) == []


def test_a_watcher_that_stood_still_does_not_find_everybody_dead() -> None:
    """Stopped for an hour, it counts one stride of it; then silence counts as before."""
    leases = Leases(5.0, stride=2.0)
    leases.look(0.0)
    leases.heard("a")
    assert leases.look(3600.0) == []
    leases.heard("a")
    assert [leases.look(3600.0 + n) for n in range(1, 6)] == [[]] * 5
    assert leases.look(3606.0) == ["a"]


@given(st.lists(st.tuples(st.floats(0, 5), st.booleans()), max_size=30))
def test_the_lease_is_what_a_slow_clock_says(steps: list[tuple[float, bool]]) -> None:
    leases, now, since = Leases(4.0, stride=1.5), 0.0, 0.0
    leases.look(0.0)
    leases.heard("a")
    for ahead, speaks in steps:
        now += ahead
        since += min(ahead, 1.5)
        assert ("a" in leases.look(now)) is (leases.silent("a") > 4.0)
        assert abs(leases.silent("a") - since) < 1e-9
        if speaks:
            leases.heard("a")
            since = 0.0
