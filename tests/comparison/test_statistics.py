import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.comparison.statistics import interval, outliers, ratio

TIMES = st.floats(0.01, 100)


def test_the_interval_is_students():
    # t(0.975, 3) = 3.182; the deviation of 1, 2, 3, 4 is sqrt(5/3).
    mean, half = interval([1.0, 2.0, 3.0, 4.0])
    assert mean == 2.5
    assert half == pytest.approx(3.182 * math.sqrt(5 / 3) / 2)
    assert interval([7.0]) == (7.0, None)
    assert interval([3.0, 5.0]) == (4.0, None), "two are too few"
    assert interval([3.0, 3.0, 3.0]) == (3.0, 0.0)


def test_the_last_value_of_the_table_is_used():
    values = [float(i % 2) for i in range(31)]  # 30 degrees of freedom
    _, half = interval(values)
    assert half == pytest.approx(2.042 * statistics.stdev(values) / math.sqrt(31))


def test_many_values_have_the_normal_interval():
    values = [float(i % 2) for i in range(200)]
    mean, half = interval(values)
    assert half == pytest.approx(1.96 * statistics.stdev(values) / math.sqrt(200))
    assert mean == 0.5


@given(st.lists(st.tuples(TIMES, TIMES), min_size=1, max_size=20))
def test_a_ratio_turned_round_is_its_inverse(pairs):
    mean, bounds = ratio(pairs)
    back, turned = ratio([(b, a) for a, b in pairs])
    assert mean * back == pytest.approx(1)
    if len(pairs) < 3:
        assert bounds is turned is None
    else:
        assert bounds[0] <= mean * (1 + 1e-9) and mean <= bounds[1] * (1 + 1e-9)
        assert bounds[0] * turned[1] == pytest.approx(1)


@given(st.lists(TIMES, min_size=3, max_size=10), st.floats(0.1, 10))
def test_equal_ratios_are_certain(times, factor):
    mean, (low, high) = ratio([(time * factor, time) for time in times])
    assert mean == pytest.approx(factor) and low == pytest.approx(factor) and high == pytest.approx(factor)


def test_a_value_far_above_the_others_is_an_outlier():
    assert outliers([1.0, 1.1, 0.9, 1.0, 3.0, 1.05]) == [4]
    assert outliers([1.0, 1.0, 1.0, 1.3]) == [3]


def test_what_is_no_outlier():
    assert outliers([1.0, 1.0, 1.0, 1.1]) == [], "a tenth is not worth a word"
    assert outliers([1.0, 2.0, 3.0, 4.0, 5.0]) == [], "they all differ"
    assert outliers([3.0, 3.1, 2.9, 0.5]) == [], "faster than the others"
    assert outliers([1.0, 9.0, 1.0]) == [], "of three nobody knows which is odd"
