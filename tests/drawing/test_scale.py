import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.drawing.scale import Scale, label, span, ticks

NUMBERS = st.floats(-1e9, 1e9, allow_nan=False)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.87, 0.97, [0.88, 0.9, 0.92, 0.94, 0.96]),
        (0, 390, [0, 100, 200, 300]),
        (-3, 4, [-2, 0, 2, 4]),
    ],
)
def test_ticks_are_round_and_inside(low, high, expected):
    assert ticks(low, high) == expected


def test_whole_ticks_never_stand_between_epochs():
    assert ticks(1, 3, 6, whole=True) == [1, 2, 3]
    assert ticks(1, 3, 6) == [1, 1.5, 2, 2.5, 3]


@given(NUMBERS, st.floats(1e-6, 1e9), st.integers(2, 12))
def test_there_are_a_few_ticks_inside_at_equal_distances(low, length, about):
    high = low + length
    if high <= low + abs(low) * 1e-7:
        return
    found = ticks(low, high, about)
    slack = length * 1e-6
    assert all(low - slack <= tick <= high + slack for tick in found)
    assert len(found) <= about + 1
    steps = [b - a for a, b in itertools.pairwise(found)]
    assert all(math.isclose(step, steps[0], rel_tol=1e-3, abs_tol=1e-9) for step in steps)


@given(st.lists(st.one_of(NUMBERS, st.just(math.nan), st.just(math.inf)), max_size=8), st.booleans())
def test_a_span_holds_all_finite_values_and_is_never_empty(values, zero):
    low, high = span(values, zero=zero, margin=0.1)
    assert low < high
    assert all(low <= value <= high for value in values if math.isfinite(value))
    assert not zero or low <= 0 <= high


def test_a_span_has_no_margin_at_zero():
    assert span([2.0, 10.0], zero=True, margin=0.1) == (0.0, 11.0)
    assert span([5.0], zero=True) == (0.0, 5.0)
    assert span([0.0], zero=True) == (0.0, 0.5)


def test_a_scale_maps_both_ends():
    scale = Scale(10, 20, 300, 100)
    assert [scale(10), scale(15), scale(20)] == [300, 200, 100]


@pytest.mark.parametrize(
    ("value", "expected"), [(0, "0"), (0.25, "0.25"), (1234.5, "1234"), (39000, "39k"), (1.5e6, "1.5M"), (2e9, "2G")]
)
def test_labels_are_short(value, expected):
    assert label(value) == expected


def test_shares_are_shown_as_percents():
    assert label(0.955, percent=True) == "95.5%"
    assert label(1, percent=True) == "100%"
