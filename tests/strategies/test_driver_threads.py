"""While workers are busy the driver has one intra-op thread: a team of its own would spin on their cores."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from convoy import Concurrent, Hybrid, Pipelined, Sequential, Speculative
from convoy.engines.driver import callers_threads
from convoy.errors import ConvoyError, DataError
from convoy.strategies.base import Settings, Strategy
from convoy.strategies.tasks import settled_step

OWN = 3
PIPELINE = Pipelined(cuts=["2"])
SETTLED: dict[str, Strategy] = {
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


def _bound(strategy: Strategy, threads: int | None = 2, loss=None):
    model = _model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    settings = Settings(threads=threads, forecast=False)
    return strategy.bind(model, loss or nn.CrossEntropyLoss(), optimizer, settings=settings)


def _batch(samples: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(samples, 3, 8, 8), torch.randint(0, 5, (samples,))


def _has_begun(step):
    for _ in range(2):
        step(*_batch())
    assert torch.get_num_threads() == 1 and callers_threads() == OWN
    return step


def test_one_thread_from_batch_to_drain():
    with _bound(PIPELINE) as step:
        for _ in range(2):
            _has_begun(step)
            step.drain()
            assert torch.get_num_threads() == OWN
        step(*_batch())
    assert torch.get_num_threads() == OWN


def test_after_a_recut():
    with _bound(PIPELINE) as step:
        _has_begun(step)
        step.drain()
        step.recut(["3"])
        assert torch.get_num_threads() == OWN
        _has_begun(step)
        step.drain()
        assert torch.get_num_threads() == OWN


def test_an_engine_in_the_drivers_own_thread_leaves_them():
    with _bound(Pipelined(stages=2, engine="inline")) as step:
        for _ in range(3):
            step(*_batch())
            assert torch.get_num_threads() == OWN


@pytest.mark.parametrize("name", SETTLED)
def test_where_nothing_is_in_flight_only_the_conversion_has_one(name, monkeypatch):
    seen: list[int] = []
    plain = settled_step.channels_last

    def watched(x):
        seen.append(torch.get_num_threads())
        return plain(x)

    monkeypatch.setattr(settled_step, "channels_last", watched)
    with _bound(SETTLED[name]) as step:
        for _ in range(3):
            step(*_batch())
            assert torch.get_num_threads() == OWN
    assert seen == [OWN, 1, 1], "no engine before the first"


@pytest.mark.parametrize("first", [0, 1])
def test_two_at_once(first):
    steps = [_has_begun(_bound(PIPELINE)), _has_begun(_bound(PIPELINE))]
    steps[first].close()
    assert torch.get_num_threads() == 1
    steps[1 - first].close()
    assert torch.get_num_threads() == OWN


def test_what_is_bound_beside_one_in_flight_gets_all_threads():
    with _has_begun(_bound(PIPELINE)), _bound(SETTLED["tasks"], threads=None) as tasks:
        for samples in (8, 6):
            tasks(*_batch(samples))
            assert tasks.workers == OWN


def test_a_step_that_was_dropped_gives_them_back():
    step = _has_begun(_bound(PIPELINE))
    del step
    gc.collect()
    assert torch.get_num_threads() == OWN


def test_a_step_that_another_thread_collects():
    """Its own number stays, and the driver's is found the next time that anything asks."""
    step = _has_begun(_bound(PIPELINE))
    step.me = step
    del step
    found: list[int] = []

    def collect():
        torch.set_num_threads(2)
        gc.collect()
        found.append(torch.get_num_threads())

    gc.disable()
    try:
        thread = threading.Thread(target=collect)
        thread.start()
        thread.join()
    finally:
        gc.enable()
    assert found == [2]
    assert callers_threads() == OWN and torch.get_num_threads() == OWN


def test_a_number_that_the_user_set_meanwhile_stays():
    with _has_begun(_bound(PIPELINE)):
        torch.set_num_threads(2)
    assert torch.get_num_threads() == 2


def test_a_batch_that_is_refused_leaves_them():
    with _bound(Pipelined(cuts=["2"], accumulate=2)) as step:
        step(*_batch())
        step.drain()
        with pytest.raises(DataError):
            step(torch.randn(8, 3, 8, 8), torch.randint(0, 5, (7,)))
        assert torch.get_num_threads() == OWN


def test_a_run_that_failed_leaves_them():
    def loss(output, y):
        raise ValueError("on purpose")

    step = _bound(PIPELINE, loss=loss)
    with pytest.raises(ConvoyError):
        for _ in range(3):
            step(*_batch())
        step.drain()
    assert torch.get_num_threads() == OWN
    step.close()


def test_after_a_switch():
    with _bound(Hybrid(PIPELINE, Sequential(), switch=1)) as step:
        step.begin_epoch(0, 2, 2)
        _has_begun(step)
        step.drain()
        step.end_epoch()
        step.begin_epoch(1, 2, 2)
        step(*_batch())
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == OWN
