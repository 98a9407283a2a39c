"""The contenders of the speed benchmark: plain loops, convoy, and data parallelism.

All train the same model with the same fused SGD on the same synthetic images, channels last, cross-entropy.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from convoy.events.event import Event
from convoy.models import build
from convoy.strategies.base import Settings
from convoy.strategies.pipelined import Pipelined
from convoy.strategies.pipelined.step import PipelinedStep
from convoy.strategies.sequential import Sequential

BATCHES = 4  # different ones, in turns
SETTLE = 2  # batches a pipeline is given before its steady state counts


def model_of(options: Mapping[str, Any]) -> nn.Module:
    shape = options["shape"]
    model = build(options["model"], channels=shape[0], image_size=shape[1], seed=0)
    return model.to(memory_format=torch.channels_last).train()


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True)


def batches_of(options: Mapping[str, Any], size: int | None = None) -> list[tuple[Tensor, Tensor]]:
    """Synthetic batches in memory, images channels last."""
    generator = torch.Generator().manual_seed(options.get("rank", 0))
    size = size or options["batch"]
    return [
        (
            torch.randn(size, *options["shape"], generator=generator).to(memory_format=torch.channels_last),
            torch.randint(0, 10, (size,), generator=generator),
        )
        for _ in range(BATCHES)
    ]


def autocast_of(options: Mapping[str, Any]) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16) if options["precision"] == "bfloat16" else nullcontext()


class Loop:
    """The hand-written PyTorch loop."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        torch.set_num_threads(options["threads"])
        self._options = options
        self._build()
        self._steps(options["warm_up"])

    def _build(self) -> None:
        self._model = model_of(self._options)
        self._module: nn.Module = self._model
        self._optimizer = optimizer_of(self._model)
        self._data = batches_of(self._options)

    def info(self) -> Mapping[str, Any]:
        return {"threads": torch.get_num_threads()}

    def _steps(self, count: int) -> None:
        for number in range(count):
            x, y = self._data[number % BATCHES]
            self._optimizer.zero_grad(set_to_none=True)
            with autocast_of(self._options):
                loss = nn.functional.cross_entropy(self._module(x), y)
            loss.backward()
            self._optimizer.step()

    def measure(self, steps: int) -> Mapping[str, Any]:
        self._steps(1)  # brings its memory back into the caches
        start = time.perf_counter()
        self._steps(steps)
        return {"seconds": (time.perf_counter() - start) / steps}


class DataParallel(Loop):
    """DDP over Gloo on the loopback: each process takes its share of the batch, one thread each."""

    def _build(self) -> None:
        join_group(self._options)
        options, size = self._options, self._options["size"]
        share = options["batch"] // size + (options["rank"] < options["batch"] % size)
        self._model = model_of(options)
        self._module = nn.parallel.DistributedDataParallel(self._model)
        self._optimizer = optimizer_of(self._model)
        self._data = batches_of(options, share)

    def info(self) -> Mapping[str, Any]:
        return {"processes": self._options["size"], "threads": torch.get_num_threads()}

    def measure(self, steps: int) -> Mapping[str, Any]:
        dist.barrier()
        return super().measure(steps)


class Limit(Loop):
    """What the machine gives: independent plain loops, one a core, that share nothing but the hardware. ``seconds`` is
    the time between two steps of all of them together; no way to train on these cores can be expected to beat it."""

    def _build(self) -> None:
        join_group(self._options)
        super()._build()

    def info(self) -> Mapping[str, Any]:
        return {"processes": self._options["size"], "threads": torch.get_num_threads()}

    def measure(self, steps: int) -> Mapping[str, Any]:
        dist.barrier()
        rate = torch.tensor(1.0 / super().measure(steps)["seconds"], dtype=torch.double)
        dist.all_reduce(rate)
        return {"seconds": 1.0 / rate.item()}


class ConvoySequential:
    """``Sequential`` bound to the same objects, with ``strategy``'s fields."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        model = model_of(options)
        settings = Settings(threads=options["threads"], precision=options["precision"])
        loss = nn.functional.cross_entropy
        strategy = Sequential(**options.get("strategy", {}))
        self._step = strategy.bind(model, loss, optimizer_of(model), settings=settings)
        self._data = batches_of(options)
        self._steps(options["warm_up"])

    def info(self) -> Mapping[str, Any]:
        return {"threads": torch.get_num_threads()}

    def _steps(self, count: int) -> None:
        for number in range(count):
            self._step(*self._data[number % BATCHES])

    def measure(self, steps: int) -> Mapping[str, Any]:
        self._steps(1)
        start = time.perf_counter()
        self._steps(steps)
        return {"seconds": (time.perf_counter() - start) / steps}


class ConvoyPipelined:
    """``Pipelined``; the time of a step is the slope of the first stage's updates in the steady state."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        model = model_of(options)
        self._events: list[Event] = []
        self._step = self._bind(Pipelined(**options["strategy"]), model, options)
        self._data = batches_of(options)
        start = time.perf_counter()
        self._step(*self._data[0])
        self._planning_seconds = time.perf_counter() - start
        for number in range(1, options["warm_up"]):
            self._step(*self._data[number % BATCHES])
        self._step.drain()

    def _bind(self, strategy: Pipelined, model: nn.Module, options: Mapping[str, Any]) -> PipelinedStep:
        settings = Settings(threads=options["threads"], precision=options["precision"])
        loss, optimizer = nn.functional.cross_entropy, optimizer_of(model)
        return strategy.bind(model, loss, optimizer, settings=settings, sink=self._events.append)

    def info(self) -> Mapping[str, Any]:
        plan = self._step.plan()
        assert plan is not None
        return {
            "workers": len(plan.stages) if plan.placement == "colocated" else 2 * len(plan.stages) - 1,
            "threads_per_worker": plan.threads_per_worker,
            "cuts": list(plan.cuts),
            "layers": [stage.layers for stage in plan.stages],
            "predicted_speedup": None if plan.speedup is None else round(plan.speedup, 3),
            "predicted_seconds": plan.step_seconds,
            "planning_seconds": round(self._planning_seconds, 2),
        }

    def measure(self, steps: int) -> Mapping[str, Any]:
        """From the end of U1 of the batch after which the pipe is full to that of the last one before it empties."""
        plan = self._step.plan()
        assert plan is not None
        tail = -(-plan.delays[0] // plan.accumulate)  # batches whose backward has no forward beside it
        self._events.clear()
        for number in range(SETTLE + 1 + steps + tail):
            self._step(*self._data[number % BATCHES])
        self._step.drain()
        actions = [e for e in self._events if e.kind == "action"]
        ends = {e.batch: e.end for e in actions if e.name.startswith("U1.")}
        first = min(ends) + SETTLE
        begin, end = ends[first], ends[first + steps]
        busy: dict[str, float] = {}
        for event in actions:
            inside = min(event.end, end) - max(event.start, begin)
            if event.lane and inside > 0:
                busy[event.lane] = busy.get(event.lane, 0.0) + inside / (end - begin)
        return {"seconds": (end - begin) / steps, "busy": {k: round(v, 3) for k, v in sorted(busy.items())}}


def join_group(options: Mapping[str, Any]) -> None:
    """Gloo among the processes of this contender, on the loopback."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{options['port']}",
        rank=options["rank"],
        world_size=options["size"],
        timeout=timedelta(seconds=600),
    )
