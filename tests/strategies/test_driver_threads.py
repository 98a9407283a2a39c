"""While workers are busy the driver has one intra-op thread: a team of its own would spin on their cores."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from convoy import Concurrent, Pipelined, Sequential, Speculative
from convoy.strategies.base import Settings, Strategy

OWN = 3
BESIDE: dict[str, Strategy] = {
    "pipelined": Pipelined(stages=2),
    "tasks": Sequential(inner="tasks"),
    "speculative": Speculative(),
    "concurrent": Concurrent(),
}


@pytest.fixture(autouse=True)
def own_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(OWN)
    yield
    torch.set_num_threads(before)


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))


def _bound(strategy: Strategy, threads: int | None = 2):
    model = _model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return strategy.bind(model, nn.CrossEntropyLoss(), optimizer, settings=Settings(threads=threads, forecast=False))


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(8, 3, 8, 8), torch.randint(0, 5, (8,))


@pytest.mark.parametrize("name", BESIDE)
def test_one_thread_from_batch_to_drain(name):
    with _bound(BESIDE[name]) as step:
        for _ in range(2):
            for _ in range(3):
                step(*_batch())
            assert torch.get_num_threads() == 1
            step.drain()
            assert torch.get_num_threads() == OWN
        step(*_batch())
    assert torch.get_num_threads() == OWN


@pytest.mark.parametrize("name", BESIDE)
def test_a_step_that_was_dropped_gives_them_back(name):
    step = _bound(BESIDE[name])
    for _ in range(3):
        step(*_batch())
    assert torch.get_num_threads() == 1
    del step
    gc.collect()
    assert torch.get_num_threads() == OWN


def test_the_workers_have_what_the_driver_had():
    """Threads that nobody set are those of the caller, also when the program is built anew in mid-run."""
    with _bound(BESIDE["tasks"], threads=None) as step:
        for samples in (8, 8, 6):
            step(*(tensor[:samples] for tensor in _batch()))
            assert step.workers == OWN


def test_an_engine_in_the_drivers_own_thread_leaves_them():
    with _bound(Pipelined(stages=2, engine="inline")) as step:
        for _ in range(3):
            step(*_batch())
            assert torch.get_num_threads() == OWN
