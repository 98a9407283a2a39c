"""A node by itself: the probe of its speed, which must leave no trace."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import nn

from convoy.data.user import as_loader
from convoy.strategies.base import Settings
from convoy.strategies.bilayered.node import Node
from convoy.strategies.bilayered.samples import samples_of


def made(parts: Any, clock: Any, seen: list[int] | None = None, count: int = 40) -> tuple[Any, Node]:
    class Counted(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return count

        def __getitem__(self, index: int) -> Any:
            if seen is not None:
                seen.append(index)
            return torch.full((2, 6, 6), index / 10), index % 3

    objects = parts(0.3)  # with dropout
    samples = samples_of(as_loader(Counted(), batch_size=8, seed=3), seed=3, held_out=False)
    settings = Settings(seed=3, threads=1)
    return objects, Node(
        0, objects.model, nn.CrossEntropyLoss(), objects.optimizer, samples, settings=settings, clock=clock
    )


def test_the_probe_counts_what_it_did_in_the_time_it_took(parts: Any) -> None:
    clock = itertools.count(0.0, 0.25)  # a quarter of a second a mini-batch of 8
    seen: list[int] = []
    _, node = made(parts, lambda: next(clock), seen)
    assert node.probe(1.0) == pytest.approx(8 / 0.25)
    assert set(seen) == set(range(8))
    assert 8 * 5 <= len(seen) <= 8 * 7  # the first warms up, four are measured; one or two are read ahead
    node.close()


def test_however_slow_two_mini_batches_are_measured(parts: Any) -> None:
    clock = itertools.count(0.0, 100.0)
    _, node = made(parts, lambda: next(clock))
    assert node.probe(0.1) == pytest.approx(8 / 100)
    node.close()


def test_fewer_samples_than_a_mini_batch_are_enough(parts: Any) -> None:
    clock = itertools.count(0.0, 0.5)
    _, node = made(parts, lambda: next(clock), count=3)
    assert node.probe(1.0) == pytest.approx(3 / 0.5)
    node.close()


def test_the_probe_changes_nothing(parts: Any) -> None:
    clock = itertools.count(0.0, 0.3)
    objects, node = made(parts, lambda: next(clock))
    x, y = torch.randn(8, 2, 6, 6), torch.zeros(8, dtype=torch.long)
    node._step(x, y)  # momentum is there
    before = copy.deepcopy((objects.model.state_dict(), objects.optimizer.state_dict()))
    drawn = torch.get_rng_state()
    node.probe()
    after = (objects.model.state_dict(), objects.optimizer.state_dict())
    assert torch.equal(drawn, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(before[0].values(), after[0].values(), strict=True))
    for a, b in zip(before[1]["state"].values(), after[1]["state"].values(), strict=True):
        assert torch.equal(a["momentum_buffer"], b["momentum_buffer"])
    node.close()
