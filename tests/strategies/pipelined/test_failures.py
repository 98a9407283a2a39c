"""What happens when something goes wrong: who hears of it, how fast, and what is left running."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convoy.errors import ModelError, RunError, Stalled, WorkerFailed
from convoy.schedule.action import Action
from convoy.strategies.base import Settings
from convoy.strategies.pipelined import Pipelined
from convoy.strategies.pipelined.step import PipelinedStep

FIXED = Settings(channels_last=False, watchdog_seconds=20)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)


def workers() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("convoy ")]


@pytest.mark.parametrize("engine", ["threads", "inline"])
@pytest.mark.parametrize("cuts", [[], ["1", "5"]])
def test_an_exception_in_the_loss_function(runs: ModuleType, engine: str, cuts: list[str]) -> None:
    model = runs.Chain(3, 0.0, True)
    calls = []

    def loss(output: Tensor, y: Tensor) -> Tensor:
        calls.append(time.perf_counter())
        if len(calls) == 3:
            raise ZeroDivisionError("the third batch is odd")
        return F.cross_entropy(output, y)

    last = len(cuts) + 1
    results = []
    with (
        pytest.raises(WorkerFailed, match=f"forward of batch 2 at stage {last}: ZeroDivisionError: the third") as e,
        Pipelined(cuts=cuts, engine=engine).bind(model, loss, sgd(model), settings=FIXED) as step,
    ):
        for x, y in runs.batches([4] * 50):
            results.append(step(x, y))
            time.sleep(0.005)
    assert time.perf_counter() - calls[2] < 1.0
    assert e.value.action == f"F{last}.2" and f">F{last}.2<" in e.value.grid
    assert isinstance(e.value.__cause__, ZeroDivisionError)
    assert workers() == []
    assert all(float(r.loss) >= 0 for r in results if r is not None and r.batch < 2), "what was done can be read"


def test_a_driver_that_waits_for_a_result_hears_of_the_failure(runs: ModuleType) -> None:
    model = runs.Chain(3, 0.0, True)

    def disturb(lane: str, action: Action) -> None:
        if action.label == "F2.0":
            time.sleep(0.2)
            raise MemoryError("no room")

    step = PipelinedStep(Pipelined(cuts=["5"]), model, F.cross_entropy, sgd(model), FIXED, None, disturb=disturb)
    x, y = runs.batches([4])[0]
    step(x, y)
    pending = step._pending[0]
    began = time.perf_counter()
    with pytest.raises(WorkerFailed, match="MemoryError"):
        _ = pending.loss
    assert time.perf_counter() - began < 1.0
    for again in (lambda: step(x, y), step.drain, lambda: pending.output):
        with pytest.raises(WorkerFailed, match="MemoryError"):
            again()
    step.close()


def test_a_result_that_will_never_come_says_so(runs: ModuleType) -> None:
    """Closed without a drain: whoever asks for what was in flight is not left waiting."""
    model = runs.Chain(3, 0.0, True)
    release = threading.Event()

    def disturb(lane: str, action: Action) -> None:
        if action.label == "F2.0":
            release.wait(10)

    step = PipelinedStep(Pipelined(cuts=["5"]), model, F.cross_entropy, sgd(model), FIXED, None, disturb=disturb)
    step(*runs.batches([4])[0])
    pending = step._pending[0]
    threading.Timer(0.1, release.set).start()
    step._engine.abandon()
    step.close()
    if not pending.ready:
        with pytest.raises(RunError, match="stopped before"):
            _ = pending.loss
    with pytest.raises(RunError, match="stopped before"):
        step.drain()


def test_a_script_that_ends_with_work_in_flight_ends_well() -> None:
    """Without close, drain or ``with``: the interpreter does not end in the middle of an action."""
    script = """
import torch
from torch import nn
from convoy import Pipelined, Settings
model = nn.Sequential(*(nn.Sequential(nn.Linear(1500, 1500), nn.ReLU()) for _ in range(4)))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
step = Pipelined(cuts=["2"]).bind(model, nn.functional.mse_loss, optimizer, settings=Settings(threads=2))
x = torch.randn(3000, 1500)
for _ in range(3):
    step(x, x)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_exception_in_the_callers_loop_leaves_no_threads(runs: ModuleType) -> None:
    model = runs.Chain(3, 0.0, True)
    with pytest.raises(KeyError), Pipelined(cuts=["5"]).bind(model, F.cross_entropy, sgd(model)) as step:
        step(*runs.batches([4])[0])
        assert len(workers()) == 2
        raise KeyError("mine")
    assert workers() == []


def test_a_model_that_cannot_be_captured_starts_no_threads() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.low = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.low(x)
            return y * 2 if float(y.sum()) > 0 else y

    model = Odd()
    step = Pipelined(cuts=["low"]).bind(model, F.cross_entropy, sgd(model))
    with pytest.raises(ModelError):
        step(torch.randn(2, 3), torch.zeros(2, dtype=torch.long))
    assert workers() == [] and step.plan() is None
    step.close()


def test_a_step_that_is_dropped_leaves_no_threads(runs: ModuleType) -> None:
    """Nobody closed it: a loop in a notebook that broke off and is run again."""
    model = runs.Chain(3, 0.0, True)
    step: Any = Pipelined(cuts=["1", "5"], placement="split").bind(model, F.cross_entropy, sgd(model), settings=FIXED)
    for x, y in runs.batches([4] * 3):
        step(x, y)
    assert len(workers()) == 5
    step = None
    gc.collect()
    until = time.perf_counter() + 2.0
    while workers() and time.perf_counter() < until:
        time.sleep(0.01)
    assert workers() == []


def press_ctrl_c(action: Action, label: str) -> None:
    if action.label == label:
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("moment", ["F1.2", "F2.1", "U1.0", "B1.1"])
@pytest.mark.parametrize("engine", ["threads", "inline"])
def test_ctrl_c_and_run_again(runs: ModuleType, engine: str, moment: str) -> None:
    """Whenever it comes: leaving the block drains, all results are there, and the same objects train on."""
    model = runs.Chain(3, 0.0, True)
    optimizer = sgd(model)
    data = runs.batches([4] * 6)
    strategy = Pipelined(cuts=["5"], engine=engine)
    step = PipelinedStep(
        strategy, model, F.cross_entropy, optimizer, FIXED, None, disturb=lambda lane, a: press_ctrl_c(a, moment)
    )
    found = []
    with pytest.raises(KeyboardInterrupt), step:
        try:
            for x, y in data * 100:
                found.append(step(x, y))
                time.sleep(0.002)
        except KeyboardInterrupt:
            found += step.drain()
            raise
    assert workers() == []
    assert [r.batch for r in found if r is not None] == list(range(step._next))
    assert all(torch.isfinite(r.loss) for r in found if r is not None)
    with strategy.bind(model, F.cross_entropy, optimizer, settings=FIXED) as again:
        results = [again(x, y) for x, y in data] + again.drain()
    assert len([r for r in results if r is not None]) == len(data)
    assert workers() == []


def test_the_same_step_goes_on_after_ctrl_c(runs: ModuleType) -> None:
    """In a notebook: the cell with the loop is run again, with the step that was made in another cell. The result
    is that of a run without the interruption."""
    data = runs.batches([4] * 8)
    ends = []
    for moment in ("none", "F2.3"):
        torch.manual_seed(0)
        model = runs.Chain(3, 0.0, True)
        step = PipelinedStep(
            Pipelined(cuts=["1", "5"]),
            model,
            F.cross_entropy,
            sgd(model),
            FIXED,
            None,
            disturb=lambda lane, a, moment=moment: press_ctrl_c(a, moment),
        )
        found = []
        while step._next < len(data):
            try:
                while step._next < len(data):
                    found.append(step(*data[step._next]))
                    time.sleep(0.002)
            except KeyboardInterrupt:
                continue
        found += step.drain()
        step.close()
        assert [r.batch for r in found if r is not None] == list(range(8))
        ends.append(dict(model.state_dict()))
    runs.same(ends[0], ends[1], "weights")


def test_a_worker_that_hangs_is_reported(runs: ModuleType) -> None:
    model = runs.Chain(3, 0.0, True)
    release = threading.Event()

    def disturb(lane: str, action: Action) -> None:
        if action.label == "F2.1":
            release.wait(20)

    settings = Settings(channels_last=False, watchdog_seconds=0.5)
    step = PipelinedStep(Pipelined(cuts=["5"]), model, F.cross_entropy, sgd(model), settings, None, disturb=disturb)
    with pytest.raises(Stalled, match=r"worker 1 waits for g2>1@1 to start B1\.1, worker 2 is busy with F2\.1"):
        for x, y in runs.batches([4] * 4):
            step(x, y)
        step.drain()
    release.set()
    step.close()


@pytest.mark.parametrize("engine", ["threads", "inline"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_number_of_threads_is_as_before(runs: ModuleType, engine: str, fails: bool) -> None:
    torch.set_num_threads(3)
    model = runs.Chain(3, 0.0, True)

    def loss(output: Tensor, y: Tensor) -> Tensor:
        seen.add(torch.get_num_threads())
        if fails:
            raise ValueError("on purpose")
        return F.cross_entropy(output, y)

    seen: set[int] = set()
    strategy = Pipelined(cuts=["5"], engine=engine)
    settings = Settings(channels_last=False, threads=4)
    step = strategy.bind(model, loss, sgd(model), settings=settings)
    try:
        for x, y in runs.batches([4] * 3):
            step(x, y)
        step.drain()
    except WorkerFailed:
        assert fails
    step.close()
    assert seen == {2}, "four threads for two workers"
    assert torch.get_num_threads() == 3
