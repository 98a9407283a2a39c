"""Who is accepted, and rows put where they belong."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convoy.strategies.speculative.acceptance import (
    Selection,
    by_chance,
    by_draw,
    by_signal,
    by_softmax,
    cosine,
    products,
    signal_distance,
)


def test_by_signal_measures_in_units_of_the_mini_batch() -> None:
    exact = torch.tensor([[3.0, 4.0], [0.0, 0.1], [5.0, 0.0], [0.0, 5.0]])  # norms 5, 0.1, 5, 5: unit 4.33
    guess = torch.tensor([[3.0, 2.0], [0.0, 1.0], [0.0, 0.0], [0.0, 5.0]])  # errors 2, 0.9, 5, 0
    assert by_signal(guess, exact, 0.0).all
    assert by_signal(guess, exact, 0.1).index.tolist() == [0, 1, 2]
    assert by_signal(guess, exact, 0.3).index.tolist() == [0, 2]
    assert by_signal(guess, exact, 1.0).index.tolist() == [2]
    assert by_signal(guess, exact, float("inf")).none
    assert by_signal(None, exact, 0.5).index.tolist() == [0, 2, 3]


def test_what_is_no_number_is_computed_exactly() -> None:
    exact = torch.ones(3, 2)
    guess = exact.clone()
    guess[1] = float("nan")
    assert by_signal(guess, exact, 0.5).index.tolist() == [1]
    assert by_draw(signal_distance(guess, exact), 0.5, 0, 0).index.tolist() == [1]
    nothing = torch.zeros(3, 2)  # no unit to measure in
    assert by_signal(guess, nothing, float("inf")).all and by_draw(signal_distance(guess, nothing), 1.0, 0, 0).all


@pytest.mark.parametrize("silent", [True, False])
def test_a_drawn_test_is_exact_on_average_and_bounded(silent: bool) -> None:
    """Whatever the distances: the mean of ŝ + b/q (s − ŝ) over the draws is s, and no correction is longer than the
    threshold or the sample's own."""
    torch.manual_seed(0)
    exact = torch.randn(12, 5) * torch.tensor([0.01, 0.1, 1.0, 2.0]).repeat(3)[:, None]
    guess = None if silent else 0.5 * torch.randn(12, 5)
    base = torch.zeros_like(exact) if guess is None else guess
    distance, total, accepted = signal_distance(guess, exact), torch.zeros_like(exact), 0.0
    for batch in range(2000):
        selection = by_draw(distance, 0.8, 7, batch)
        rows = selection.scaled(guess, exact)
        longest = (rows - selection.rows(base)).norm(dim=1)
        own = (exact - base).norm(dim=1)
        unit = own / distance
        assert bool((longest <= torch.maximum(own, 0.8 * unit)[selection.index] * 1.001).all())
        total += selection.mixed(guess, rows) / 2000
        accepted += selection.accepted / 2000
    assert (total - exact).norm() < 0.05 * exact.norm()
    assert abs(accepted - float((1 - distance / 0.8).clamp(min=0).mean())) < 0.02
    assert by_draw(distance, 0.8, 7, 3).code == by_draw(distance, 0.8, 7, 3).code
    assert by_draw(distance, 0.0, 7, 3).all and by_draw(distance, 0.0, 7, 3).scale == 1.0


def test_by_softmax_rejects_labels_not_seen() -> None:
    p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.5, 0.5]])
    remembered = torch.tensor([[0.8, 0.2], [0.8, 0.2], [0.9, 0.1]])
    seen = torch.tensor([True, False, True])
    assert by_softmax(remembered, p, seen, 0.25).index.tolist() == [1, 2]
    assert by_softmax(remembered, p, seen, 0.0).all
    assert by_softmax(p, p, torch.ones(3, dtype=torch.bool), 0.0).all


@given(st.integers(1, 40), st.integers(0, 2**40 - 1))
def test_the_set_as_text(samples: int, bits: int) -> None:
    accepted = [bool(bits >> i & 1) for i in range(samples)]
    selection = Selection.of(~torch.tensor(accepted))
    assert [bool(int(selection.code, 16) >> i & 1) for i in range(samples)] == accepted
    assert selection.accepted == 1 - selection.rejected / samples and selection.rejected == samples - sum(accepted)


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.booleans())
def test_rows_there_and_back(rejected: list[bool], images: bool) -> None:
    selection = Selection.of(torch.tensor(rejected))
    shape = (len(rejected), 3, 4, 2) if images else (len(rejected), 3)
    exact, guess = torch.randn(shape), torch.randn(shape)
    if images:
        exact, guess = (t.to(memory_format=torch.channels_last) for t in (exact, guess))
    mask = torch.tensor(rejected).reshape(-1, *[1] * (len(shape) - 1))
    before = guess.clone()
    assert torch.equal(selection.mixed(guess, selection.rows(exact)), torch.where(mask, exact, guess))
    assert torch.equal(selection.mixed(None, selection.rows(exact)), torch.where(mask, exact, 0.0))
    assert torch.equal(guess, before)


def test_chance_depends_on_seed_and_batch_alone() -> None:
    draws = [by_chance(64, 0.25, seed, batch, False).code for seed in (0, 1) for batch in (0, 1)]
    assert len(set(draws)) == 4 and draws[0] == by_chance(64, 0.25, 0, 0, True).code
    assert 0.2 < by_chance(10_000, 0.25, 0, 0, False).accepted < 0.3
    assert by_chance(8, 0.75, 0, 0, True).scale == 4.0 and by_chance(8, 0.0, 0, 0, True).scale == 1.0


def test_cosine_of_parts_is_that_of_the_whole() -> None:
    a, b = torch.randn(20), torch.randn(20)
    parts = [products([a[:8]], [b[:8]]), products([a[8:], None], [b[8:], None])]
    assert abs(cosine(parts) - float(torch.cosine_similarity(a, b, 0))) < 1e-6
    assert cosine([products([torch.zeros(3)], [torch.ones(3)])]) == 0.0
