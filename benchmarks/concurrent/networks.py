"""The networks of the benchmark, and who trains them. Same weights, fused SGD, synthetic images, channels last."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "speed"))

import torch
from contenders import BATCHES, Limit, Loop, batches_of, join_group, model_of, optimizer_of
from torch import nn

from convoy.models.resnet import Bottleneck
from convoy.strategies.base import Settings
from convoy.strategies.concurrent import Concurrent
from convoy.strategies.sequential import Sequential

SHAPES = {"vgg16": (3, 32, 32), "bottlenecks": (64, 28, 28), "resnet20": (3, 32, 32)}


class Bottlenecks(nn.Sequential):
    """Two blocks of each of the first three groups of ResNet-50, on half its pixels: (N, 64, 28, 28) → (N, 10)."""

    def __init__(self) -> None:
        blocks: list[nn.Module] = []
        inputs = 64
        for width, stride in ((64, 1), (128, 2), (256, 2)):
            projection = nn.Sequential(
                nn.Conv2d(inputs, 4 * width, 1, stride=stride, bias=False), nn.BatchNorm2d(4 * width)
            )
            blocks += [Bottleneck(inputs, width, stride, projection), Bottleneck(4 * width, width, 1, None)]
            inputs = 4 * width
        super().__init__(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def network(options: Mapping[str, Any]) -> nn.Module:
    if options["model"] != "bottlenecks":
        return model_of(options)
    torch.manual_seed(0)
    return Bottlenecks().to(memory_format=torch.channels_last).train()


class PlainLoop(Loop):
    """PyTorch's loop written by hand, on so many threads of its own."""

    def _build(self) -> None:
        self._model = self._module = network(self._options)
        self._optimizer = optimizer_of(self._model)
        self._data = batches_of(self._options)

    def measure(self, steps: int) -> Mapping[str, Any]:
        start = time.process_time()
        found = super().measure(steps)
        return {**found, "cpu_seconds": (time.process_time() - start) / (steps + 1)}


class TwoLoops(Limit):
    """What the machine gives: an independent loop on each core, sharing nothing but the hardware."""

    def _build(self) -> None:
        join_group(self._options)
        PlainLoop._build(self)  # type: ignore[arg-type]


class Strategies:
    """A strategy of convoy; planning is over before the first round."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        fields = dict(options["strategy"])
        made = Sequential(**fields) if "inner" in fields else Concurrent(**fields)
        model = network(options)
        start = time.perf_counter()
        self._data = batches_of(options)
        settings = Settings(threads=options["threads"])
        self._step = made.bind(model, nn.functional.cross_entropy, optimizer_of(model), settings=settings)
        self._step(*self._data[0])
        self._planning_seconds = time.perf_counter() - start
        self._steps(options["warm_up"])

    def info(self) -> Mapping[str, Any]:
        plan = self._step.plan()
        found: dict[str, Any] = {"planning_seconds": round(self._planning_seconds, 2)}
        if plan is not None and plan.strategy == "concurrent":
            lanes = {(p.sort, p.lane): 0.0 for p in plan.schedule}
            for p in plan.schedule:
                lanes[p.sort, p.lane] += p.seconds
            found |= {
                "groups": plan.groups,
                "conv_seconds": sum(s for (sort, _), s in lanes.items() if sort == "conv"),
                "nonconv_seconds": sum(s for (sort, _), s in lanes.items() if sort == "nonconv"),
                "serial_seconds": plan.serial_seconds,
                "predicted_speedup": round(plan.serial_seconds / plan.predicted_seconds, 3),
                "bound_by_kind": round(plan.serial_seconds / plan.balance_seconds, 3),
                "bound_by_chain": round(plan.serial_seconds / plan.chain_seconds, 3),
                "considered": [[c.groups, c.serial_seconds, c.predicted_seconds] for c in plan.considered],
            }
        return found

    def _steps(self, count: int) -> None:
        for number in range(count):
            self._step(*self._data[number % BATCHES])

    def measure(self, steps: int) -> Mapping[str, Any]:
        self._steps(1)
        start, spent = time.perf_counter(), time.process_time()
        self._steps(steps)
        return {
            "seconds": (time.perf_counter() - start) / steps,
            "cpu_seconds": (time.process_time() - spent) / steps,
        }
