"""Seconds of an optimizer's step and of adding up gradients: counted on a clock that moves with the bytes touched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convoy.strategies import update_seconds as module
from convoy.strategies.base import Settings
from convoy.strategies.pipelined.balance_bench import Bench
from convoy.strategies.update_seconds import adding_seconds, state_share, update_seconds


@pytest.fixture
def touched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Bytes that in-place additions have touched; the clock reads their sum."""
    sizes: list[int] = []
    add = Tensor.add_

    def counting(self: Tensor, other: Any, **rest: Any) -> Tensor:
        sizes.append(self.nbytes)
        return add(self, other, **rest)

    monkeypatch.setattr(Tensor, "add_", counting)
    monkeypatch.setattr(module, "perf_counter", lambda: float(sum(sizes)))
    yield sizes


def test_every_trained_weight_is_added_once(touched: list[int]) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model[0].weight.requires_grad_(False)
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    assert adding_seconds(list(model.parameters()), repeats=2) == trained
    assert sum(touched) == 3 * trained, "one round warms up"


def test_nothing_trained_takes_nothing() -> None:
    frozen = [torch.zeros(3)]
    assert adding_seconds(frozen) == 0.0
    assert update_seconds(frozen) == 0.0


def test_of_many_bytes_a_part_stands_for_all(touched: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 1000)
    weights = [nn.Parameter(torch.zeros(100)) for _ in range(10)]
    assert adding_seconds(weights, repeats=1) == pytest.approx(4000)
    assert sum(touched) == 2 * 3 * 400, "every fourth weight"


def test_gradients_stay_as_they_were() -> None:
    weight = nn.Parameter(torch.ones(5))
    adding_seconds([weight])
    update_seconds([weight])
    assert weight.grad is None
    assert torch.equal(weight, torch.ones(5))


def test_micro_batches_cost_their_additions(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False))
    bench = Bench(model, nn.functional.cross_entropy, torch.zeros(8, 12), torch.zeros(8, dtype=torch.long), Settings())
    monkeypatch.setattr(Bench, "update", lambda self, threads: 13.0)
    monkeypatch.setattr(Bench, "adding", lambda self, threads: 26.0)
    assert sum(bench.updates(1)) == pytest.approx(13.0)
    assert sum(bench.updates(1, 4)) == pytest.approx(13.0 + 3 * 26.0)
    first, last = (seconds for seconds in bench.updates(1, 4) if seconds)
    assert first == pytest.approx(12 * last), "in proportion to the bytes"


@pytest.mark.parametrize(
    ("make", "share"),
    [
        (None, 1.0),
        (lambda p: torch.optim.SGD(p, 0.1), 0.0),
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), 1.0),
        (lambda p: torch.optim.SGD([{"params": p, "momentum": 0.9}], 0.1), 1.0),
        (lambda p: torch.optim.AdamW(p, 0.1), 2.0),
        (lambda p: torch.optim.Adam(p, 0.1, amsgrad=True), 3.0),
    ],
)
def test_what_an_optimizer_keeps(make: Any, share: float) -> None:
    weights = [nn.Parameter(torch.zeros(3))]
    optimizer = None if make is None else make(weights)
    assert state_share(optimizer) == share
    assert optimizer is None or not optimizer.state  # the user's was not stepped


def test_a_step_that_fails_counts_as_momentum() -> None:
    class Own(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            raise ValueError("other weights")

    class Picky(torch.optim.SGD):
        def __init__(self, params: Any, scale: float = 0.0) -> None:
            if not scale:
                raise ValueError("give scale")
            super().__init__(params, 0.1)

    assert state_share(Own([nn.Parameter(torch.zeros(3))], 0.1)) == 1.0
    assert state_share(Picky([nn.Parameter(torch.zeros(3))], 2.0)) == 1.0
