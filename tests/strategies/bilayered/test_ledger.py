"""Allocation batches, local passes that are due, moving samples: sums are exact and nothing is counted twice."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from convoy.strategies.bilayered import ledger
from convoy.strategies.bilayered.ledger import FREE, Segment, Slice


def test_batches_differ_by_one_and_larger_ones_come_last() -> None:
    assert ledger.batch_bounds(12, 4) == (0, 3, 6, 9, 12)
    assert ledger.batch_bounds(11, 3) == (0, 3, 7, 11)


def test_due_passes_by_hand() -> None:
    # K = 4, A = 3: K' = 5, so batches take part in 5, 4 and 3 local passes: 3·(5 + 4 + 3) = 36 = 4·9.
    assert [ledger.due(9, 3, 4, a, 3 * a - 3, 3 * a) for a in (1, 2, 3)] == [
        [(0, 3, 5)],
        [(3, 6, 4)],
        [(6, 9, 3)],
    ]
    # K = 2, A = 2: K' = 2.5, half of the positions take part once more: 2·8 + 1·8 + ... = 2·16
    first, second = ledger.due(16, 2, 2, 1, 0, 8), ledger.due(16, 2, 2, 2, 8, 16)
    assert first == [(0, 4, 3), (4, 8, 2)]
    assert second == [(8, 12, 2), (12, 16, 1)]


@given(
    st.integers(1, 300),
    st.integers(1, 9),
    st.integers(1, 12),
    st.lists(st.integers(0, 300), max_size=6),
)
def test_all_ranges_together_come_to_exactly_so_many_passes(n: int, batches: int, passes: int, at: list[int]) -> None:
    assume(batches <= min(n, 2 * passes - 1))
    bounds = ledger.batch_bounds(n, batches)
    total, places = 0, 0
    for batch in range(1, batches + 1):
        start, stop = bounds[batch - 1], bounds[batch]
        cuts = [start, *sorted(min(max(c, start), stop) for c in at), stop]
        for a, b in pairwise(cuts):
            for first, last, left in ledger.due(n, batches, passes, batch, a, b):
                assert left >= 0 and a <= first < last <= b
                places += last - first
                total += (last - first) * left
    assert (places, total) == (n, passes * n)


def test_moving_takes_from_the_back_and_only_what_has_passes_left() -> None:
    segments = [
        Segment(0, 4, 0, 2),
        Segment(4, 6, 0, 0),
        Segment(6, 8, 1, 2),
        Segment(8, 10, 0, 1),
    ]
    assert ledger.move(segments, 0, 1, 3) == [
        Segment(0, 3, 0, 2),
        Segment(3, 4, 1, 2),
        Segment(4, 6, 0, 0),
        Segment(6, 8, 1, 2),
        Segment(8, 10, 1, 1),
    ]


@given(
    st.lists(
        st.tuples(st.integers(1, 9), st.integers(-1, 2), st.integers(0, 3)),
        min_size=1,
        max_size=8,
    ),
    st.integers(-1, 2),
    st.integers(-1, 2),
    st.integers(0, 40),
)
def test_moving_keeps_every_position_and_every_pass(
    parts: list[tuple[int, int, int]], donor: int, receiver: int, count: int
) -> None:
    segments, start = [], 0
    for size, owner, left in parts:
        segments.append(Segment(start, start + size, owner, left))
        start += size
    before = ledger.held(segments, donor)
    moved = ledger.move(segments, donor, receiver, count)
    assert [p for s in moved for p in range(s.start, s.stop)] == list(range(start))
    assert ledger.visits(moved).total() == ledger.visits(segments).total()
    if donor != receiver:
        assert before - ledger.held(moved, donor) == min(count, before)


def test_neighbours_are_joined_when_they_agree() -> None:
    assert ledger.tidy([Segment(0, 2, 1, 3), Segment(2, 5, 1, 3), Segment(5, 6, FREE, 3)]) == [
        Segment(0, 5, 1, 3),
        Segment(5, 6, FREE, 3),
    ]
    assert ledger.join([(4, 6), (0, 2), (2, 4), (8, 9)]) == ((0, 6), (8, 9))


def test_a_slice_is_split_without_loss() -> None:
    assert list(ledger.split(Slice(3, 10, 20), (4, 0, 6))) == [
        Slice(3, 10, 14),
        None,
        Slice(3, 14, 20),
    ]


@pytest.mark.parametrize("n", [1, 7, 100])
def test_one_batch_is_due_once_per_pass(n: int) -> None:
    assert ledger.due(n, 1, 5, 1, 0, n) == [(0, n, 5)]
