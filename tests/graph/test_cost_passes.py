"""One time for each node from several disturbed passes; numbers only."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.graph.cost_passes import disagreement, drawn_to_prior, typical
from convoy.graph.timed_pass import Times

TRUE = [1.0, 2.0, 4.0, 0.5]


def passes(factors: list[float], spikes: dict[tuple[int, int], float] | None = None) -> list[Times]:
    """A pass per factor; ``spikes``: (pass, node) → seconds more."""
    made = []
    for number, factor in enumerate(factors):
        forward = [factor * cost + (spikes or {}).get((number, i), 0.0) for i, cost in enumerate(TRUE)]
        made.append(Times(tuple(forward), tuple(2 * factor * cost for cost in TRUE)))
    return made


def test_without_disturbance_it_is_what_was_measured() -> None:
    found = typical(passes([1.0] * 4))
    assert found.forward == tuple(TRUE) and found.backward == tuple(2 * c for c in TRUE)
    assert found.uncertainty == (0.0,) * 4 and found.dropped == 0


@given(st.lists(st.floats(1.0, 1.29), min_size=3, max_size=8))
def test_a_drifting_clock_leaves_the_shares_alone(factors: list[float]) -> None:
    found = typical(passes([1.0, *factors]))
    whole = sum(found.forward)
    for seconds, cost in zip(found.forward, TRUE, strict=True):
        assert seconds / whole == pytest.approx(cost / sum(TRUE), rel=1e-6)
    assert 1.0 - 1e-9 <= found.forward[0] <= max(factors) + 1e-9


def test_spikes_on_single_nodes_do_not_count() -> None:
    spikes = {(0, 0): 9.0, (2, 1): 5.0, (3, 3): 2.0}
    found = typical(passes([1.0] * 6, spikes))
    assert found.forward == pytest.approx(TRUE, rel=0.02)


def test_bad_minutes_are_dropped_but_three_passes_stay() -> None:
    assert typical(passes([1.0, 1.0, 2.0, 1.0, 2.0])).dropped == 2
    few = typical(passes([1.0, 2.0, 3.0]))
    assert few.dropped == 0 and few.forward == pytest.approx([1.5 * c for c in TRUE])  # their low quantile


def test_halves_that_agree_and_halves_that_do_not() -> None:
    assert disagreement(passes([1.0, 1.1, 1.2, 1.3])) == pytest.approx(0.0, abs=1e-12)
    swapped = [Times((3.0, 1.0), (0.0, 0.0)), Times((1.0, 3.0), (0.0, 0.0))] * 3
    assert disagreement(swapped) == pytest.approx(0.5)
    assert disagreement(swapped[:3]) == 1.0


def test_what_is_certain_stays_and_what_is_not_is_drawn_to_its_kind() -> None:
    chance = random.Random(0)
    prior = [1.0] * 10
    seconds = [2.0 * chance.uniform(0.95, 1.05) for _ in prior[:-1]] + [6.0]  # the last one was disturbed
    kinds = ["conv2d"] * 10
    certain = drawn_to_prior(seconds, [0.0] * 10, prior, kinds)
    assert certain == pytest.approx(seconds)
    drawn = drawn_to_prior(seconds, [0.01] * 9 + [2.0], prior, kinds)
    assert drawn[:9] == pytest.approx(seconds[:9], rel=0.02)
    assert drawn[9] == pytest.approx(2.0, rel=0.05)


def test_a_kind_that_is_rare_is_left_alone() -> None:
    seconds = [1.0, 5.0, 3.0]
    assert drawn_to_prior(seconds, [9.0] * 3, [1.0, 1.0, 0.0], ["linear"] * 3) == seconds
