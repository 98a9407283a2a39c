"""How the nodes stand: who is named slow, measured against the speed that the user gave."""

from __future__ import annotations

import pytest

from convoy.strategies.bilayered.plan import node_rows, slowness
from convoy.strategies.bilayered.state import Rules, State
from convoy.strategies.bilayered.virtual import Fault, Script, simulate


def state(seconds: tuple[float, ...], nominal: tuple[float, ...], **script: object) -> State:
    rules = Rules(samples=240, batch_size=10, allocation="even", round=2, patience=1e6)
    return simulate(rules, Script(seconds, speeds=nominal, **script), 8).state  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seconds", "nominal", "slow"),
    [
        ((0.001, 0.001), (1, 1), []),
        ((0.001, 0.002), (1, 1), [1]),
        ((0.003, 0.001), (1, 1), [0]),
        ((0.001, 0.002), (2, 1), []),  # as promised
        ((0.001, 0.002, 0.001), (1, 1, 1), [1]),
        ((0.001, 0.0014, 0.001), (1, 1, 1), []),
        ((0.004, 0.001, 0.001), (1, 2, 2), [0]),
    ],
)
def test_slow_is_who_breaks_the_promise_of_its_nominal_speed(
    seconds: tuple[float, ...], nominal: tuple[float, ...], slow: list[int]
) -> None:
    rows = node_rows(state(seconds, nominal), nominal)
    assert [row["node"] for row in rows if row["state"] == "slow"] == slow


def test_the_factor_says_how_much() -> None:
    assert slowness(state((0.001, 0.003), (1, 1)), (1, 1))[1] == pytest.approx(3)
    assert slowness(state((0.001, 0.003), (1, 1)), (2, 1))[1] == pytest.approx(1.5)


def test_probed_speeds_do_not_excuse_it() -> None:
    """The state knows what a node joined with; what counts is what the user said."""
    found = state((0.001, 0.003), (1000.0, 333.0))
    assert slowness(found, (1, 1))[1] == pytest.approx(3)


def test_the_newest_rounds_count() -> None:
    found = state((0.001, 0.001), (1, 1), faults=(Fault(0.5, 1, "slow", factor=2.0),))
    assert slowness(found, (1, 1))[1] == pytest.approx(2)


def test_nobody_is_slow_before_two_rounds_are_measured() -> None:
    assert slowness(State(Rules(samples=10)), ()) == {}
    assert slowness(simulate(Rules(samples=8, round=4), Script((1e-3, 1.0)), 1).state, (1, 1)) == {}
