"""What a pipeline holds, and for how long."""

from __future__ import annotations

import gc
import time
import weakref
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from convoy.strategies.base import Settings
from convoy.strategies.pipelined import Pipelined
from convoy.strategies.pipelined.step import PipelinedStep

FIXED = Settings(channels_last=False, watchdog_seconds=20)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)


def chain(runs: ModuleType) -> nn.Module:
    torch.manual_seed(0)
    return runs.Chain(3, 0.0, True)


def test_what_is_done_is_freed(runs: ModuleType) -> None:
    """Neither outputs nor inputs nor what autograd saved outlives the batch."""
    model = chain(runs)
    alive: list[weakref.ref[Any]] = []
    step = Pipelined(cuts=["1", "5"]).bind(model, F.cross_entropy, sgd(model), settings=FIXED)
    with step:
        for x, y in runs.batches([4] * 12):
            x = x.clone()
            alive.append(weakref.ref(x))
            result = step(x, y)
            del x
            if result is not None:
                alive.append(weakref.ref(result.output))
                del result
        gc.collect()
        in_flight = 2 * 2 + 1 + 2  # d + 1 parts at stage 1, and at most two batches ahead
        assert sum(r() is not None for r in alive) <= 2 * in_flight
        step.drain()
        gc.collect()
        assert [r() for r in alive if r() is not None] == []
        assert len(step._program.batches) == 0
        assert len(step._engine._store) == 0
        assert all(p.grad is None for p in model.parameters())


def test_a_result_may_be_read_long_after(runs: ModuleType) -> None:
    model = chain(runs)
    with Pipelined(cuts=["1", "5"]).bind(model, F.cross_entropy, sgd(model), settings=FIXED) as step:
        results = [step(x, y) for x, y in runs.batches([4] * 8)] + step.drain()
    assert len([float(r.loss) for r in results if r is not None]) == 8


def test_the_driver_is_at_most_a_batch_ahead(runs: ModuleType) -> None:
    """Inputs do not pile up in front of a slow first stage."""
    model = chain(runs)
    started: list[int] = []

    def slow(lane: str, action: Any) -> None:
        if action.kind == "F" and action.subject == "1":
            started.append(action.batch)
            time.sleep(0.02)

    step = PipelinedStep(Pipelined(cuts=["5"]), model, F.cross_entropy, sgd(model), FIXED, None, disturb=slow)
    with step:
        for t, (x, y) in enumerate(runs.batches([4] * 6)):
            step(x, y)
            assert t - max(started, default=-1) <= 1
