"""Stages in real actors of a local Ray: the same bits, and what happens when an actor fails, dies or freezes."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from convoy.engines.ray.session import Session, connect
from convoy.errors import RunError, WorkerFailed
from convoy.strategies.base import Settings
from convoy.strategies.pipelined import Pipelined
from convoy.strategies.pipelined.remote.step import RemoteStep
from convoy.training.trainer import Trainer

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

FIXED = Settings(channels_last=False, watchdog_seconds=60)


@pytest.fixture(scope="module", autouse=True)
def ray() -> Iterator[Session]:
    """One Ray for all: the steps join it."""
    with connect(cpus=8) as session:
        yield session


def momentum(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)


def processes(step: Any) -> dict[str, int]:
    return {lane: int(named.split("process ")[1].split()[0]) for lane, named in step._engine._named.items()}


def test_actors_equal_the_oracle(runs: ModuleType, train: Any) -> None:
    """Dropout, BatchNorm, skips across cuts, a schedule, clipping, micro-batches, drains and an uneven last batch."""
    config: dict[str, Any] = {
        "cut_at": [0.3, 0.7],
        "accumulate": 2,
        "clock": "1f1b",
        "correction": "predict:linear",
        "optimizer": "plain_momentum",
        "schedule": True,
        "drains": [3, 5],
        "settings": Settings(channels_last=True, clip=0.5, watchdog_seconds=60),
    }
    runs.OPTIMIZERS["plain_momentum"] = lambda p: torch.optim.SGD(p, 0.02, momentum=0.9, weight_decay=1e-2)
    build = partial(runs.Dense, 4, 0.3, True)
    remote = train(build, [4] * 7 + [3], **config)
    runs.same_outcome(remote, runs.train(build, [4] * 7 + [3], engine="inline", **config))
    done = {e.name: e for e in remote.events if e.kind == "action"}
    assert {f"{kind}{i}.{t}" for kind in "FBU" for i in (1, 2, 3) for t in range(8)} <= set(done)
    now = time.perf_counter()
    assert all(now - 300 < e.start <= e.end < now for e in done.values()), "times are on the driver's clock"
    assert done["F2.1"].start >= done["F1.1"].end and done["F2.1"].lane == "worker 2"
    assert done["U2.1"].data["reads"] == {"W2": 1} and done["U2.1"].data["writes"] == {"W2": 2}


@pytest.mark.slow
def test_an_actor_that_freezes_is_noticed(runs: ModuleType) -> None:
    model = runs.Chain(3, 0.0, True)
    settings = Settings(channels_last=False, watchdog_seconds=5)
    step = Pipelined(cuts=["5"], engine="ray").bind(model, F.cross_entropy, momentum(model), settings=settings)
    (x, y), *_ = runs.batches([4])
    step(x, y)
    step.drain()
    born = processes(step)
    os.kill(born["worker 1"], signal.SIGSTOP)
    with pytest.raises(RunError, match=r"worker 1 .*(has not answered for|nothing moved for)|nothing moved for"):
        for _ in range(1000):
            step(x, y)
            time.sleep(0.05)
    step.close()
    assert ended(born)


def ended(born: dict[str, int]) -> bool:
    """Whether all processes are gone, or go within half a minute."""
    for _ in range(600):
        if not any(map(alive, born.values())):
            return True
        time.sleep(0.05)
    return False


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


# --- resuming ------------------------------------------------------------------------------------------------


def trainer(runs: ModuleType, engine: str, run_dir: Path | None = None) -> tuple[Trainer, DataLoader[Any]]:
    torch.manual_seed(0)
    model = runs.Chain(4, 0.3, True)
    data = runs.batches([60 * 4])[0]
    options = {} if run_dir is None else {"run_dir": run_dir, "save_every": 8}
    optimizer = momentum(model)
    made = Trainer(
        model,
        nn.CrossEntropyLoss(),
        optimizer,
        scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.7),
        strategy=Pipelined(cuts=["5"], engine=engine),
        settings=FIXED,
        **options,
    )
    made.held = (model, optimizer)  # type: ignore[attr-defined]
    return made, DataLoader(TensorDataset(*data), batch_size=4)


def killed_and_resumed(runs: ModuleType, run_dir: Path, worker: str, after: float) -> None:
    """One of the actors dies ``after`` seconds of training. The run stops within seconds, and goes on to the same
    bits. Where training was through before, the kill is of no effect, and that is checked too."""
    first, loader = trainer(runs, "ray", run_dir)
    began = threading.Event()
    born: dict[str, int] = {}
    struck: list[float] = []

    def kill() -> None:
        began.wait(120)
        time.sleep(after)
        loop = first._loop
        if loop is not None:
            born.update(processes(loop.step))
            with suppress(ProcessLookupError):
                os.kill(born[worker], signal.SIGKILL)
                struck.append(time.monotonic())

    first._callbacks = (*first._callbacks, lambda event: began.set() if event.kind == "step" else None)
    thread = threading.Thread(target=kill)
    thread.start()
    failure: WorkerFailed | None = None
    try:
        first.fit(loader, epochs=3)
    except WorkerFailed as failed:
        failure, stopped = failed, time.monotonic()
    thread.join()
    if failure is None:
        assert len(first._state.history.epochs) == 3
    else:
        assert struck and stopped - struck[0] < 10.0
        assert re.search(
            rf"{worker} failed (in|after) the \w+ of batch \d+ at stage \d: .*process \d+ on .* died: ", str(failure)
        )
        saved = first.run_path is not None and any((first.run_path / "checkpoints").iterdir())
        assert ("--resume" if saved else "--save-every") in str(failure.hint)
    assert ended(born)
    again, loader = trainer(runs, "ray", run_dir)
    if first.run_path is not None and any((first.run_path / "checkpoints").iterdir()):
        again.load(first.run_path)
    again.fit(loader, epochs=3)
    whole, loader = trainer(runs, "inline", run_dir)
    whole.fit(loader, epochs=3)
    for mine, theirs in zip(again.held, whole.held, strict=True):
        runs.same(mine.state_dict(), theirs.state_dict(), "state")
    print(f"{worker} {after:.3f} s: {'no kill' if failure is None else f'stopped after {stopped - struck[0]:.2f} s'}")


def test_a_run_whose_actor_died_is_resumed(runs: ModuleType, tmp_path: Path) -> None:
    killed_and_resumed(runs, tmp_path, "worker 1", 0.2)


@pytest.mark.slow
@pytest.mark.parametrize("worker", ["worker 1", "worker 2"])
@pytest.mark.parametrize("moment", range(10))
def test_each_actor_at_ten_random_moments(runs: ModuleType, tmp_path: Path, worker: str, moment: int) -> None:
    killed_and_resumed(runs, tmp_path, worker, Random(f"{worker}{moment}").random() * 1.5)


@pytest.mark.slow
def test_a_step_that_is_dropped_does_not_stop_the_others(runs: ModuleType) -> None:
    """Its actors end with it; the Ray that it shared goes on."""
    model = runs.Chain(3, 0.0, True)
    step: RemoteStep | None = Pipelined(cuts=["5"], engine="ray").bind(model, F.cross_entropy, momentum(model))
    assert step is not None
    step(*runs.batches([4])[0])
    born = processes(step)
    step = None
    assert ended(born)
    with Pipelined(cuts=["5"], engine="ray").bind(model, F.cross_entropy, momentum(model)) as other:
        other(*runs.batches([4])[0])
        assert len(other.drain()) == 1
