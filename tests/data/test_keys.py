"""The hash must never change: data orders of recorded runs depend on it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from convoy.data.keys import below, draws, key, permutation


def test_draws_are_the_published_splitmix64() -> None:
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert draws(0, np.arange(3)).tolist() == expected


def test_scalar_and_array_hash_agree() -> None:
    # key(part) runs the scalar mixing; its building block must be the array one.
    from convoy.data.keys import _STEP, _mixed

    assert [_mixed((i + 1) * _STEP % 2**64) for i in range(3)] == draws(0, np.arange(3)).tolist()


def test_recorded_orders() -> None:
    assert permutation(key(1, 0, 0), 10).tolist() == [3, 5, 1, 6, 8, 9, 7, 4, 0, 2]
    assert permutation(key(1, 0, 1), 10).tolist() == [7, 2, 1, 0, 9, 4, 8, 3, 5, 6]


@given(st.lists(st.integers(-(2**70), 2**70), min_size=2, max_size=4))
def test_keys_are_64_bits_and_tell_parts_apart(parts: list[int]) -> None:
    assert 0 <= key(*parts) < 2**64
    changed = [parts[0] + 1, *parts[1:]]
    assert key(*parts) != key(*changed)
    if parts[0] % 2**64 != parts[1] % 2**64:
        assert key(*parts) != key(parts[1], parts[0], *parts[2:])


@given(st.integers(0, 2**64 - 1), st.integers(0, 300))
def test_permutation_holds_every_number_once(of: int, count: int) -> None:
    assert sorted(permutation(of, count).tolist()) == list(range(count))


@given(st.integers(0, 2**64 - 1), st.permutations(list(range(12))))
def test_a_draw_belongs_to_its_index(of: int, order: list[int]) -> None:
    everything = draws(of, np.arange(12))
    assert draws(of, np.array(order)).tolist() == everything[order].tolist()


def test_below_is_even() -> None:
    counts = np.bincount(below(draws(key(5), np.arange(90_000)), 9), minlength=9)
    assert len(counts) == 9
    assert abs(counts - 10_000).max() < 500  # five standard deviations
