"""The formulas: worked examples by hand, and what must hold whatever the numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.errors import InternalError
from convoy.strategies.bilayered.rules import (
    agwu,
    agwu_mended,
    idpa,
    idpa_mended,
    sgwu,
    sgwu_mended,
)
from convoy.strategies.bilayered.rules.idpa_mended import Cost
from convoy.strategies.bilayered.rules.whole import whole

counts = st.integers(1, 100_000)
positive = st.floats(1e-4, 1e4)
shares = st.lists(st.floats(0.0, 1e6), min_size=1, max_size=8)


def test_largest_remainder_by_hand() -> None:
    # 7 * (0.5, 0.3, 0.2) = 3.5, 2.1, 1.4: the one sample left goes to the remainder 0.5
    assert whole([0.5, 0.3, 0.2], 7) == (4, 2, 1)
    assert whole([1, 1, 1], 5) == (2, 2, 1)  # of equal remainders the earlier first
    assert whole([-3, 1, 3], 8) == (
        0,
        2,
        6,
    )  # what is negative is clamped, the rest scaled
    assert whole([0, 0], 3) == (2, 1)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9), st.integers(0, 10**7))
def test_whole_shares_sum_exactly(values: list[float], total: int) -> None:
    given_out = whole(values, total)
    assert sum(given_out) == total
    assert min(given_out) >= 0


@given(shares, counts)
def test_whole_shares_are_within_one_of_the_exact_ones(values: list[float], total: int) -> None:
    scale = math.fsum(values)
    for share, got in zip(values, whole(values, total), strict=True):
        exact = total * share / scale if scale else total / len(values)
        assert abs(got - exact) < 1 + 1e-6 * total


def test_nothing_to_share_out_to_is_our_mistake() -> None:
    with pytest.raises(InternalError):
        whole([], 3)


def test_idpa_by_hand() -> None:
    assert idpa.first_batch(300, [2, 1]) == (200, 100)
    # Node 1 takes 1 ms a sample, node 2 2 ms, and both hold 100: of 300, node 1 should hold 200 and node 2 100.
    assert idpa.later_batch(300, [0.001, 0.002], [100, 100]) == pytest.approx((100, 0))
    # A node that holds too much would have to give back: the published rule's increment is negative.
    assert idpa.later_batch(300, [0.001, 0.002], [50, 200]) == pytest.approx((150, -100))


@given(st.lists(st.tuples(positive, st.integers(0, 1000)), min_size=1, max_size=6), counts)
def test_idpa_evens_out_the_times(nodes: list[tuple[float, int]], more: int) -> None:
    seconds, held = [t for t, _ in nodes], [n for _, n in nodes]
    got = idpa.later_batch(sum(held) + more, seconds, held)
    assert math.fsum(got) == pytest.approx(more, abs=1e-6 * (sum(held) + more))
    times = [t * (n + g) for t, n, g in zip(seconds, held, got, strict=True)]
    assert times == pytest.approx([times[0]] * len(times))


def test_water_filling_by_hand() -> None:
    # Without fixed parts it is IDPA's proportion.
    assert idpa_mended.water_fill(300, [Cost(0, 1), Cost(0, 2)]) == pytest.approx((200, 100))
    # T* = (10 + 0 + 4)/(1 + 1) = 7: 7 samples and 3.
    assert idpa_mended.water_fill(10, [Cost(0, 1), Cost(4, 1)]) == pytest.approx((7, 3))
    # A node whose fixed part alone takes longer than T* gets nothing, and the rest is solved again.
    assert idpa_mended.water_fill(10, [Cost(0, 1), Cost(50, 1)]) == pytest.approx((10, 0))
    # What is held is a floor.
    assert idpa_mended.water_fill(12, [Cost(0, 1), Cost(0, 2), Cost(0, 1)], [0, 6, 0]) == pytest.approx((3, 6, 3))


@given(
    st.lists(
        st.tuples(st.floats(0, 100), st.floats(1e-3, 10), st.integers(0, 500)),
        min_size=1,
        max_size=6,
    ),
    st.integers(0, 5000),
)
def test_water_filling_is_exact_and_level(nodes: list[tuple[float, float, int]], more: int) -> None:
    costs, held = [Cost(a, b) for a, b, _ in nodes], [n for _, _, n in nodes]
    total = sum(held) + more
    filled = idpa_mended.water_fill(total, costs, held)
    assert math.fsum(filled) == pytest.approx(total, abs=1e-6 * (total + 1))
    above = [j for j, n in enumerate(filled) if n > held[j] + 1e-6 * (total + 1)]
    level = max((costs[j].seconds(filled[j]) for j in above), default=0.0)
    for j, n in enumerate(filled):
        assert n >= held[j] - 1e-9
        if j in above:  # all that got something end together ...
            assert costs[j].seconds(n) == pytest.approx(level, rel=1e-3, abs=1e-3)
        else:  # ... and who got nothing would have ended later
            assert costs[j].seconds(n) >= level * (1 - 1e-3) - 1e-3


def test_costs_have_a_fixed_part_only_when_sizes_show_it() -> None:
    line = idpa_mended.fit_cost([(100, 3.0), (200, 5.0), (300, 7.0)])
    assert (line.fixed, line.per_sample) == pytest.approx((1.0, 0.02))
    assert idpa_mended.fit_cost([(100, 3.0), (100, 3.2), (100, 3.1)]) == Cost(0, 0.031)


def test_one_noisy_timing_changes_little() -> None:
    quiet = [(100, 1.0), (100, 1.0), (100, 1.0)]
    noisy = [(100, 1.0), (100, 9.0), (100, 1.0)]
    assert idpa_mended.fit_cost(noisy) == idpa_mended.fit_cost(quiet)


def test_gain_of_sharing_out_anew() -> None:
    costs = [Cost(0, 1), Cost(0, 2)]
    assert idpa_mended.gain(costs, [20, 10]) == pytest.approx(0)
    assert idpa_mended.gain(costs, [15, 15]) == pytest.approx(1 - 20 / 30)
    assert idpa_mended.gain(costs, [0, 0]) == 0


def test_agwu_by_hand() -> None:
    # i = 3, bases 2, 1, 0: e^1, e^0.5, e^0 over their sum
    total = math.e + math.exp(0.5) + 1
    assert agwu.attenuation(2, [2, 1, 0], 3) == pytest.approx(math.e / total)
    assert agwu.agwu(0, [2, 1, 0], 3, 0.5) == pytest.approx(0.5 / total)
    assert agwu.attenuation(0, [0, 0, 0], 1) == pytest.approx(1 / 3)  # 0/0, read as equal


@pytest.mark.parametrize(("version", "ratio"), [(51, 1.49), (1001, 1.02)])
def test_the_published_attenuation_fades(version: int, ratio: float) -> None:
    new, old = (agwu.attenuation(version - 1 - lag, [version - 1, version - 21], version) for lag in (0, 20))
    assert new / old == pytest.approx(ratio, abs=0.01)


@given(st.integers(1, 10**6), st.lists(st.integers(0, 10**6), min_size=1, max_size=8))
def test_the_published_factors_sum_to_one(version: int, bases: list[int]) -> None:
    bases = [min(k, version - 1) for k in bases]
    assert math.fsum(agwu.attenuation(k, bases, version) for k in bases) == pytest.approx(1)


def test_agwu_mended_by_hand() -> None:
    assert agwu_mended.agwu_mended(100, [100], 0, 1) == 1
    assert agwu_mended.agwu_mended(100, [100, 300], 1, 2) == 0.25  # lag 1 is what two nodes have anyway
    assert agwu_mended.agwu_mended(100, [100, 100], 4, 2) == pytest.approx(0.5 / 2)  # 1 + 4 - 1 = 4
    assert agwu_mended.agwu_mended(100, [100, 100], 0, 2, 0.9, [0.9, 0.3]) == pytest.approx(0.5 * 1.5)
    assert agwu_mended.agwu_mended(100, [100, 100], 0, 2, 0.01, [0.01, 0.9]) == pytest.approx(0.5 * 0.5)
    assert agwu_mended.agwu_mended(100, [100, 100], 0, 2, 0.0, [0.0, 0.0]) == 0.5


@given(st.integers(0, 1000), st.integers(1, 64))
def test_attenuation_never_rises_with_the_lag(lag: int, nodes: int) -> None:
    assert 0 < agwu_mended.attenuation(lag + 1, nodes) <= agwu_mended.attenuation(lag, nodes) <= 1
    assert agwu_mended.attenuation(nodes - 1, nodes) == 1


@pytest.mark.parametrize(
    ("lag", "nodes", "stale"),
    [(4, 1, False), (5, 1, True), (12, 3, False), (13, 3, True)],
)
def test_stale_pushes(lag: int, nodes: int, stale: bool) -> None:
    assert agwu_mended.is_stale(lag, nodes) is stale


@given(st.lists(counts, min_size=1, max_size=8))
def test_shares_of_the_mended_rule_sum_to_one(samples: list[int]) -> None:
    assert math.fsum(agwu_mended.agwu_mended(n, samples, 0, len(samples)) for n in samples) == pytest.approx(1)


def test_sgwu_by_hand() -> None:
    assert sgwu.sgwu([0.6, 0.2]) == pytest.approx((0.75, 0.25))
    assert sgwu.sgwu([0.0, 0.0]) == (0.5, 0.5)
    assert sgwu_mended.sgwu_mended([300, 100]) == (0.75, 0.25)  # local SGD
    # 0.8/0.5 = 1.6 and 0.2/0.5 = 0.4, which is held at 0.5: 160 and 50 of 210
    assert sgwu_mended.sgwu_mended([100, 100], [0.8, 0.2]) == pytest.approx((160 / 210, 50 / 210))


@given(st.lists(st.tuples(counts, st.floats(0, 1)), min_size=1, max_size=8))
def test_synchronous_weights_sum_to_one_and_are_bounded(
    nodes: list[tuple[int, float]],
) -> None:
    samples, qualities = [n for n, _ in nodes], [q for _, q in nodes]
    for weights in (sgwu.sgwu(qualities), sgwu_mended.sgwu_mended(samples, qualities)):
        assert math.fsum(weights) == pytest.approx(1)
    plain, mended = (
        sgwu_mended.sgwu_mended(samples),
        sgwu_mended.sgwu_mended(samples, qualities),
    )
    for a, b in zip(plain, mended, strict=True):
        assert a / 4 - 1e-12 <= b <= a * 4 + 1e-12
