"""Numbers that depend on the batch size compute like numbers, and say when they stop to depend on it."""

from __future__ import annotations

import math
import operator

import pytest

from convoy.graph.batch_number import BatchFloat, BatchInt, batch_number, plain, second_of


class Heard:
    def __init__(self) -> None:
        self.what: list[str] = []

    def fixed(self, what: str) -> None:
        self.what.append(what)


@pytest.fixture
def heard() -> Heard:
    return Heard()


def size(heard: Heard) -> BatchInt:
    number = batch_number(6, 12, "size", ("tensor", 0), heard)
    assert isinstance(number, BatchInt)
    return number


def test_only_what_differs_depends_on_the_batch(heard: Heard) -> None:
    assert type(batch_number(3, 3, "size", (), heard)) is int
    assert type(batch_number(True, False, "size", (), heard)) is bool
    assert type(batch_number("a", "b", "size", (), heard)) is str
    assert batch_number(3, None, "size", (), heard) == 3


@pytest.mark.parametrize(
    ("function", "first", "second"),
    [
        (lambda b: b + 1, 7, 13),
        (lambda b: 1 + b, 7, 13),
        (lambda b: b * b, 36, 144),
        (lambda b: 13 - b, 7, 1),
        (lambda b: b // 4, 1, 3),
        (lambda b: -b, -6, -12),
        (lambda b: b**2, 36, 144),
        (lambda b: b / 4, 1.5, 3.0),
        (lambda b: 2.0 * (1 / b), 1 / 3, 1 / 6),
        (lambda b: (b + 1) * 2 - b, 8, 14),
    ],
)
def test_arithmetic_is_done_for_both_sizes(heard: Heard, function, first: float, second: float) -> None:  # type: ignore[no-untyped-def]
    result = function(size(heard))
    assert isinstance(result, BatchInt | BatchFloat)
    assert plain(result) == pytest.approx(first) and second_of(result) == pytest.approx(second)
    assert not heard.what


def test_a_result_remembers_how_to_compute_it_again(heard: Heard) -> None:
    b = size(heard)
    result = 2 + b // 3
    assert result.function is operator.add and result.arguments[0] == 2
    assert result.arguments[1].function is operator.floordiv and result.arguments[1].arguments[0] is b


def test_what_stops_to_depend_is_plain(heard: Heard) -> None:
    assert type(size(heard) % 6) is int and type(size(heard) - size(heard)) is int


@pytest.mark.parametrize("use", [lambda b: b > 4, lambda b: b == 6, bool, lambda b: min(b, 100), lambda b: b != 6])
def test_a_condition_is_reported(heard: Heard, use) -> None:  # type: ignore[no-untyped-def]
    assert use(size(heard)) == use(6)
    assert heard.what[0] == "a condition"


@pytest.mark.parametrize("use", [int, float, math.sqrt, round, math.floor])
def test_a_plain_number_is_reported(heard: Heard, use) -> None:  # type: ignore[no-untyped-def]
    result = use(size(heard))
    assert result == use(6) and type(result) in (int, float)
    assert heard.what == ["a plain number"]


def test_it_is_an_int_wherever_an_int_is_wanted(heard: Heard) -> None:
    b = size(heard)
    assert list(range(b)) == list(range(6)) and [0] * b == [0] * 6 and f"{b}" == "6" and {6: "x"}[b] == "x"
    with pytest.raises(TypeError):
        b + "x"  # type: ignore[operator]
