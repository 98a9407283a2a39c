"""The schedules of ``torch.distributed.pipelining`` on two processes over Gloo, one thread each.

The package refuses a backward pass through skip connections that cross stages, so the model is cut by hand at a
block boundary: the one nearest to half of the measured time (a quarter, for schedules with two stages a process).
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from contenders import BATCHES, autocast_of, batches_of, join_group, model_of, optimizer_of
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed import pipelining

SCHEDULES = {
    "gpipe": "ScheduleGPipe",
    "1f1b": "Schedule1F1B",
    "interleaved-1f1b": "ScheduleInterleaved1F1B",
    "looped-bfs": "ScheduleLoopedBFS",
    "interleaved-zb": "ScheduleInterleavedZeroBubble",
    "zbv": "ScheduleZBVZeroBubble",
    "dualpipev": "ScheduleDualPipeV",
}
ONE_STAGE_A_PROCESS = ("gpipe", "1f1b")
SPLIT_BACKWARD = ("interleaved-zb", "zbv", "dualpipev")  # they detach a stage's output in place, so it is no view
V_SHAPED = ("zbv", "dualpipev")  # the first process has the first and the last stage


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The model as a chain of blocks, none of which a skip connection leaves."""
    children = dict(model.named_children())
    flatten = nn.Flatten(1)
    if {"features", "classifier"} <= set(children):  # VGG, AlexNet
        middle = [children["avgpool"]] if "avgpool" in children else []
        return [*children["features"], *middle, flatten, *children["classifier"]]  # type: ignore[misc]
    if "layer1" in children:  # ResNets
        blocks: list[nn.Module] = []
        for name, child in children.items():
            if name == "fc":
                blocks.append(flatten)
            blocks += list(child) if name.startswith("layer") else [child]  # type: ignore[call-overload]
        return blocks
    blocks = []
    for name, child in children.items():  # LeNet-5
        if name == "fc1":
            blocks.append(flatten)
        blocks.append(child)
    return blocks


def chain_of(model: nn.Module, shape: Sequence[int]) -> list[nn.Module]:
    """``blocks_of``, checked: the chain must compute what the model computes."""
    blocks: list[nn.Module] = []
    for block in blocks_of(model):
        if isinstance(block, nn.ReLU):  # in place: no stage may begin with it
            block = nn.Sequential(blocks.pop(), block)
        blocks.append(block)
    was = model.training
    with torch.no_grad():
        x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
        if not torch.equal(nn.Sequential(*blocks).eval()(x), model.eval()(x)):
            raise ValueError(f"{type(model).__name__} is not the chain of its blocks")
    model.train(was)
    return blocks


class BlockTimes:
    """Seconds of every block, forward and backward, on one thread: the least of a few passes. Run once for all."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        torch.set_num_threads(1)
        self._blocks = chain_of(model_of(options), options["shape"])
        self._x, self._options = batches_of(options)[0][0], options

    def info(self) -> Mapping[str, Any]:
        return {"blocks": len(self._blocks)}

    def measure(self, steps: int) -> Mapping[str, Any]:
        best = [float("inf")] * len(self._blocks)
        for _ in range(steps):
            value = self._x
            for index, block in enumerate(self._blocks):
                leaf = value.detach().requires_grad_(index > 0)
                start = time.perf_counter()
                with autocast_of(self._options):
                    value = block(leaf)
                torch.autograd.backward(value, torch.ones_like(value))
                best[index] = min(best[index], time.perf_counter() - start)
        return {"seconds": sum(best), "blocks": best}


def balanced(times: Sequence[float], stages: int) -> list[int]:
    """Numbers of the blocks that begin stages 2, 3, …: nearest to equal shares of the time, from the left."""
    total, cuts = sum(times), []
    for stage in range(1, stages):
        lowest = (cuts[-1] if cuts else 0) + 1
        places = range(lowest, len(times) - (stages - stage) + 1)
        cuts.append(min(places, key=lambda p: abs(sum(times[:p]) - total * stage / stages)))
    return cuts


class Piece(nn.Module):
    """A stage under autocast. Gloo sends contiguous tensors only, so images cross a cut as [N, H, W, C], which is how
    channels last lies in memory: a view, no copy where the schedule allows."""

    def __init__(self, blocks: Sequence[nn.Module], options: Mapping[str, Any], first: bool, last: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self._options, self._first, self._last = options, first, last
        self._copy = options["schedule"] in SPLIT_BACKWARD

    def forward(self, x: Tensor) -> Tensor:
        if not self._first and x.dim() == 4:
            x = x.permute(0, 3, 1, 2)
        with autocast_of(self._options):
            x = self.blocks(x)
        if not self._last and x.dim() == 4:
            x = x.permute(0, 2, 3, 1)
            x = x.clone(memory_format=torch.contiguous_format) if self._copy else x.contiguous()
        return x


class Synchronous:
    """One schedule, ``options["schedule"]``, with ``options["micro_batches"]`` micro-batches."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        torch.set_num_threads(1)
        logging.getLogger("torch.distributed.pipelining").setLevel(logging.CRITICAL)  # errors go to the coordinator
        join_group(options)
        self._options, self._rank = options, options["rank"]
        name, parts = options["schedule"], options["micro_batches"]
        if options["batch"] % parts:
            raise ValueError(f"a batch of {options['batch']} does not divide into {parts} micro-batches")
        self._cuts = options["cuts"]
        model = model_of(options)
        blocks = chain_of(model, options["shape"])
        edges = [0, *self._cuts, len(blocks)]
        count = len(edges) - 1
        pieces = [
            Piece(blocks[a:b], options, first=a == 0, last=b == len(blocks)) for a, b in itertools.pairwise(edges)
        ]
        values = self._values_between(pieces, batches_of(options)[0][0][: options["batch"] // parts])
        mine = self._mine(name, count)
        stages = [
            pipelining.PipelineStage(
                pieces[i], i, count, torch.device("cpu"), input_args=values[i], output_args=values[i + 1]
            )
            for i in mine
        ]
        schedule = getattr(pipelining.schedules, SCHEDULES[name])
        self._schedule = schedule(stages if count > 2 else stages[0], n_microbatches=parts, loss_fn=self._loss)
        self._optimizer = torch.optim.SGD(
            [p for i in mine for p in pieces[i].parameters()],
            **{
                k: v
                for k, v in optimizer_of(model).defaults.items()
                if k in ("lr", "momentum", "weight_decay", "fused")
            },
        )
        self._first, self._last = 0 in mine, count - 1 in mine
        self._data = batches_of(options | {"rank": 0})  # the target of the images the first process has
        self._steps(options["warm_up"])

    def _mine(self, name: str, count: int) -> list[int]:
        if count == 2:
            return [self._rank]
        if name in V_SHAPED:
            return [self._rank, count - 1 - self._rank]
        return [i for i in range(count) if i % 2 == self._rank]

    @staticmethod
    def _values_between(pieces: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
        """Shapes of what goes in and out of the stages. Given, because inferring them runs the stages on empty
        memory, and that would spoil the BatchNorm estimates. BatchNorm's modules are in eval mode meanwhile."""
        values = [x]
        for piece in pieces:
            piece.eval()
            with torch.no_grad():
                values.append(piece(values[-1]))
            piece.train()
        # Gradients flow between stages, not into the images.
        return [values[0], *(v.detach().requires_grad_() for v in values[1:])]

    def _loss(self, output: Tensor, target: Tensor) -> Tensor:
        with autocast_of(self._options):
            return nn.functional.cross_entropy(output, target)

    def _steps(self, count: int) -> None:
        for number in range(count):
            x, y = self._data[number % BATCHES]
            self._optimizer.zero_grad(set_to_none=True)
            inputs = (x,) if self._first else ()
            if self._last:
                self._schedule.step(*inputs, target=y, losses=[], return_outputs=False)
            else:
                self._schedule.step(*inputs, return_outputs=False)
            self._optimizer.step()

    def info(self) -> Mapping[str, Any]:
        return {"processes": 2, "threads": 1, "cuts": self._cuts}

    def measure(self, steps: int) -> Mapping[str, Any]:
        dist.barrier()
        self._steps(1)
        start = time.perf_counter()
        self._steps(steps)
        return {"seconds": (time.perf_counter() - start) / steps}
