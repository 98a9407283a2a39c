from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convoy.errors import OptionError
from convoy.graph.partition import Partition, nearly_optimal, partition

# Whole numbers and powers of two: sums and quotients are exact, so that equal means equal.
NUMBERS = st.integers(0, 20).map(float)
SPEEDS = st.sampled_from([0.5, 1.0, 2.0])


@st.composite
def problems(draw: st.DrawFn) -> dict[str, object]:
    costs = draw(st.lists(NUMBERS, min_size=2, max_size=8))
    positions = st.integers(1, len(costs) - 1)
    allowed = draw(st.lists(positions, unique=True, min_size=1))
    parts = draw(st.integers(1, min(5, len(allowed) + 1)))
    return {
        "costs": costs,
        "allowed": allowed,
        "parts": parts,
        "crossing": draw(st.none() | st.dictionaries(positions, NUMBERS)),
        "speeds": draw(st.none() | st.lists(SPEEDS, min_size=parts, max_size=parts)),
    }


def loads_of(
    cuts: Sequence[int],
    costs: Sequence[float],
    crossing: Mapping[int, float] | None,
    speeds: Sequence[float] | None,
) -> tuple[float, ...]:
    ends, border = [0, *cuts, len(costs)], crossing or {}
    return tuple(
        (sum(costs[a:b]) + (border.get(a, 0.0) if a else 0.0) + border.get(b, 0.0)) / (speeds[k] if speeds else 1.0)
        for k, (a, b) in enumerate(pairwise(ends))
    )


def by_brute_force(costs, allowed, parts, crossing, speeds, fits=lambda cuts: True) -> list[tuple[float, float, tuple]]:
    """(greatest load, crossing, cuts) of every partition, best first."""
    found = []
    for cuts in combinations(sorted(allowed), parts - 1):
        if fits(cuts):
            loads = loads_of(cuts, costs, crossing, speeds)
            found.append((max(loads), sum((crossing or {}).get(c, 0.0) for c in cuts), cuts))
    return sorted(found)


@settings(max_examples=300, deadline=None)
@given(problems())
def test_equals_brute_force_with_both_tie_breaks(problem) -> None:
    best = by_brute_force(**problem)[0]
    found = partition(**problem)
    assert (found.bottleneck, found.cuts) == (best[0], best[2])
    assert found.loads == loads_of(found.cuts, problem["costs"], problem["crossing"], problem["speeds"])
    total = sum(problem["speeds"]) if problem["speeds"] else problem["parts"]
    assert found.ideal == sum(problem["costs"]) / total


@settings(max_examples=150, deadline=None)
@given(problems(), st.integers(0, 60), st.lists(st.integers(0, 20), min_size=8, max_size=8))
def test_memory_limits_equal_brute_force(problem, limit, sizes) -> None:
    def needs(start: int, stop: int, part: int) -> float:
        return float(sum(sizes[start:stop]) * (problem["parts"] - part))

    def fits(cuts: tuple[int, ...]) -> bool:
        ends = [0, *cuts, len(problem["costs"])]
        return all(needs(a, b, k) <= limit for k, (a, b) in enumerate(pairwise(ends)))

    everything = by_brute_force(**problem, fits=fits)
    if everything:
        found = partition(**problem, memory=needs, limit=limit)
        assert (found.bottleneck, found.cuts) == (everything[0][0], everything[0][2])
    else:
        with pytest.raises(OptionError, match=rf"limit of {limit}"):
            partition(**problem, memory=needs, limit=limit)


def test_memory_as_an_array_and_a_limit_per_part() -> None:
    sizes = [4, 1, 1, 1, 1]
    table = np.array([[sum(sizes[a:b]) for b in range(6)] for a in range(6)])
    arguments = {"costs": [1.0] * 5, "allowed": [1, 2, 3, 4], "parts": 2, "memory": table}
    assert partition(**arguments, limit=[5, 9]).cuts == (2,)
    assert partition(**arguments, limit=[4, 9]).cuts == (1,)
    assert partition(**arguments, limit=[9, 2]).cuts == (3,)
    with pytest.raises(OptionError, match=r"limit of 3: the best is 1 above it"):
        partition(**arguments, limit=3)


@settings(max_examples=150, deadline=None)
@given(problems(), st.sampled_from([0.0, 0.1, 0.5]), st.sampled_from([0.0, 0.05, 0.3]))
def test_nearly_optimal_are_apart_in_order_and_within_the_bound(problem, within, apart) -> None:
    best = partition(**problem)
    found = nearly_optimal(**problem, within=within, apart=apart, count=4)
    assert found[0] == best
    assert [p.bottleneck for p in found] == sorted(p.bottleneck for p in found)
    assert all(p.bottleneck <= best.bottleneck * (1 + within) for p in found)
    for one, other in combinations(found, 2):
        assert one.cuts != other.cuts
        moved = [
            abs(sum(problem["costs"][:a]) - sum(problem["costs"][:b]))
            for a, b in zip(one.cuts, other.cuts, strict=True)
        ]
        assert max(moved) >= apart * best.ideal
    for p in found:
        assert p.loads == loads_of(p.cuts, problem["costs"], problem["crossing"], problem["speeds"])


@settings(max_examples=100, deadline=None)
@given(problems())
def test_nearly_optimal_finds_all_of_them_when_asked_for_many(problem) -> None:
    """With nothing but the bound in the way, branching reaches every partition."""
    everything = by_brute_force(**problem)
    wanted = {cuts for load, _, cuts in everything if load <= everything[0][0] * 1.25}
    found = nearly_optimal(**problem, within=0.25, apart=0.0, count=200)
    assert {p.cuts for p in found} == wanted


def test_drawing_in_the_docstring() -> None:
    assert partition([3, 1, 4, 1, 5], [1, 2, 3, 4], 3) == Partition((2, 4), (4.0, 5.0, 5.0), 5.0, 14 / 3)


def test_equal_loads_prefer_little_crossing_then_early_cuts() -> None:
    costs = [4.0, 0.0, 0.0, 4.0]
    assert partition(costs, [1, 2, 3], 2).cuts == (1,)
    assert partition(costs, [1, 2, 3], 2, crossing={1: 0.5, 2: 0.25, 3: 0.5}).cuts == (2,)


def test_crossing_can_outweigh_balance() -> None:
    assert partition([5, 5, 4, 6], [1, 2, 3], 2).cuts == (2,)
    assert partition([5, 5, 4, 6], [1, 2, 3], 2, crossing={2: 9.0}).cuts in ((1,), (3,))


def test_a_fast_worker_gets_more() -> None:
    found = partition([1.0] * 9, range(1, 9), 2, speeds=[2.0, 1.0])
    assert found.cuts == (6,)
    assert found.loads == (3.0, 3.0)
    assert found.efficiency == 1.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"costs": [1, 2, 3], "allowed": [1, 2], "parts": 4}, "4 stages need 3 cuts.* at 2 places"),
        ({"costs": [1, 2, 3], "allowed": [1], "parts": 3}, "3 stages need 2 cuts.* at 1 place only"),
        ({"costs": [1, 2], "allowed": [1], "parts": 0}, "0 parts"),
        ({"costs": [1, 2], "allowed": [0], "parts": 2}, "position 0"),
        ({"costs": [1, 2], "allowed": [1, 2], "parts": 2}, "position 2"),
        ({"costs": [1, float("nan")], "allowed": [1], "parts": 2}, "cost is nan"),
        ({"costs": [1, -1], "allowed": [1], "parts": 2}, "cost is -1"),
        ({"costs": [1, 1], "allowed": [1], "parts": 2, "crossing": {1: -2.0}}, "crossing cost is -2"),
        ({"costs": [1, 1], "allowed": [1], "parts": 2, "speeds": [1.0]}, "1 speeds are given for 2"),
        ({"costs": [1, 1], "allowed": [1], "parts": 2, "speeds": [1.0, 0.0]}, "speeds are"),
        ({"costs": [1, 1], "allowed": [1], "parts": 2, "limit": [1.0]}, "1 limits are given for 2"),
    ],
)
def test_refusals_name_what_was_given(arguments, words) -> None:
    with pytest.raises(OptionError, match=words) as caught:
        partition(**arguments)
    assert caught.value.hint


def test_large_problems_are_fast() -> None:
    costs = [((i * 7919) % 101) / 100 for i in range(400)]
    places = range(1, 400)
    partition(costs, places, 8)
    best = min(_timed(lambda: partition(costs, places, 8)) for _ in range(5))
    assert best < 0.05


def _timed(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
