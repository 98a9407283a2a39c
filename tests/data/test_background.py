from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable

import pytest

from convoy.data.background import ahead


def wait_until(true: Callable[[], bool], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.002)
    return true()


def threads() -> int:
    return sum(thread.name == "convoy-data" for thread in threading.enumerate())


@pytest.fixture(autouse=True)
def no_thread_is_left() -> object:
    yield
    gc.collect()
    assert wait_until(lambda: threads() == 0)


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_order_and_length(count: int) -> None:
    assert list(ahead(lambda i: i * i, range(3, 40), count)) == [i * i for i in range(3, 40)]
    assert list(ahead(lambda i: i, range(0), count)) == []


@pytest.mark.parametrize("count", [1, 3])
def test_no_more_than_so_many_ahead(count: int) -> None:
    made: list[int] = []
    items = ahead(lambda i: made.append(i) or i, range(50), count)
    for taken in range(1, 10):
        next(items)
        # those waiting, and the one in the maker's hand
        assert wait_until(lambda taken=taken: len(made) == taken + count + 1)  # type: ignore[misc]
        time.sleep(0.005)
        assert len(made) == taken + count + 1


def test_nothing_starts_before_the_first_item_is_asked_for() -> None:
    items = ahead(lambda i: i, range(5), 2)
    assert threads() == 0
    del items


@pytest.mark.parametrize("count", [0, 1, 4])
def test_an_exception_arrives_after_the_items_before_it(count: int) -> None:
    def make(place: int) -> int:
        if place == 3:
            raise ValueError("third")
        return place

    got: list[int] = []
    with pytest.raises(ValueError, match="third"):
        for item in ahead(make, range(9), count):
            got.append(item)
    assert got == [0, 1, 2]


def test_the_thread_ends_when_the_iterator_is_dropped() -> None:
    items = ahead(lambda i: i, range(10**9), 2)
    next(items)
    assert threads() == 1
    del items
    gc.collect()
    assert wait_until(lambda: threads() == 0)


def test_the_thread_ends_when_the_consumer_breaks_or_raises() -> None:
    for _ in ahead(lambda i: i, range(10**9), 1):
        break
    with pytest.raises(KeyboardInterrupt):
        for _ in ahead(lambda i: i, range(10**9), 1):
            raise KeyboardInterrupt
    gc.collect()
    assert wait_until(lambda: threads() == 0)


def test_a_thread_that_is_asked_to_stop_delivers_a_slow_item_to_nobody() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def make(place: int) -> int:
        if place == 1:
            begun.set()
            assert go_on.wait(5)
        return place

    items = ahead(make, range(10), 1)
    next(items)
    assert begun.wait(5)
    began = time.monotonic()
    items.close()  # type: ignore[attr-defined]
    assert time.monotonic() - began < 1  # closing never waits for the item in work
    go_on.set()


def test_many_loops_at_once() -> None:
    both = zip(ahead(lambda i: i, range(100), 1), ahead(lambda i: -i, range(100), 2), strict=True)
    assert list(both) == [(i, -i) for i in range(100)]
