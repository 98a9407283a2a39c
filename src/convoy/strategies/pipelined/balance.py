"""Where to cut: an optimal partition of measured node costs, then the best of a few by running their real stages.

One profile can be wrong (a program that ran beside it, caches that behave otherwise when stages run together). So the
partitions within a few per cent of the optimum run side by side, their stages at the same time as in the pipeline,
and the one whose slowest stage is fastest is taken.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from convoy.graph.cost import Profile
from convoy.graph.graph import Graph
from convoy.graph.partition import nearly_optimal
from convoy.graph.random import keyed
from convoy.graph.split import Segment, allowed_cuts, crossing, split
from convoy.graph.stage_times import Stage, StageTime, stage_seconds
from convoy.strategies.base import Loss, Settings
from convoy.strategies.batch import tensors
from convoy.strategies.precision import autocast_of

HANDOVER_BYTES_PER_SECOND = 20e9
"""What a cut costs its neighbours: the values are not copied, but they leave the cache of one core for another's."""
SPLIT_SPEED = 1.5  # a stage with two workers is through in its backward's time, two thirds of the whole


@dataclass(frozen=True)
class Balanced:
    """The cuts taken, the measured stage times (together), and how many partitions were tried."""

    cuts: tuple[int, ...]
    times: tuple[StageTime, ...]
    tried: int


def best_cuts(profile: Profile, stages: int, split_placement: bool) -> list[tuple[int, ...]]:
    """The optimal partition of the measured costs and up to three others within 6 %, best first."""
    graph = profile.graph
    places = allowed_cuts(graph)
    bytes_at = {p: sum(graph.by_name[name].output_bytes for name in crossing(graph, p)) for p in places}
    found = nearly_optimal(
        profile.costs,
        places,
        stages,
        within=0.06,
        count=4,
        apart=0.015,
        crossing={p: 2 * n / HANDOVER_BYTES_PER_SECOND for p, n in bytes_at.items()},
        speeds=_speeds(stages, split_placement),
    )
    return [partition.cuts for partition in found]


def compare_cuts(
    graph: Graph,
    candidates: Sequence[Sequence[int]],
    *,
    split_placement: bool,
    threads: int,
    values: Mapping[str, Any],
    target: Any,
    loss: Loss,
    settings: Settings,
    budget_seconds: float = 8.0,
) -> Balanced:
    """Run the stages of every candidate side by side and take the one whose slowest stage is fastest.

    ``values``: one batch by input name.
    """
    scratch = replace(graph, program=copy.deepcopy(graph.program))  # running it moves BatchNorm estimates
    made = [runnable(split(scratch, cuts), values, target, loss, settings) for cuts in candidates]
    stages = len(made[0])
    measured = stage_seconds(made, repeats=7, budget_seconds=budget_seconds, threads=threads, together=stages > 1)
    speeds = _speeds(stages, split_placement)
    worst = [max(t.seconds / w for t, w in zip(times, speeds, strict=True)) for times in measured]
    best = min(range(len(candidates)), key=lambda i: worst[i])
    return Balanced(tuple(candidates[best]), measured[best], len(candidates))


def _speeds(stages: int, split_placement: bool) -> list[float]:
    return [SPLIT_SPEED if split_placement else 1.0] * (stages - 1) + [1.0]


def runnable(
    segments: Sequence[Segment],
    values: Mapping[str, Any],
    target: Any,
    loss: Loss,
    settings: Settings,
) -> list[Stage]:
    """(forward, backward) of every segment on one batch, gradients of ones where the next stage would send them."""
    known: dict[str, Any] = dict(values)
    stages: list[Stage] = []
    autocast = autocast_of(settings)
    for index, segment in enumerate(segments):
        inputs = [known[name] if name in values else _leaf(known[name]) for name in segment.inputs]
        last = index == len(segments) - 1
        stages.append(_stage(segment, inputs, last, target, loss, settings.seed, autocast))
        if not last:
            with torch.no_grad(), autocast(), keyed(settings.seed, 0):
                known.update(zip(segment.outputs, segment.module(*inputs), strict=True))
    return stages


def _leaf(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().requires_grad_()
    return value


def _stage(
    segment: Segment, inputs: Sequence[Any], last: bool, target: Any, loss: Loss, seed: int, autocast: Any
) -> Stage:
    def forward() -> list[Tensor]:
        with torch.enable_grad(), autocast(), keyed(seed, 0):
            outputs = segment.module(*inputs)
            if last:
                outputs = loss(outputs, target)
        return [t for t in tensors(outputs) if t.requires_grad]

    def backward(roots: list[Tensor]) -> None:
        wanted = [t for t in (*inputs, *segment.module.parameters()) if isinstance(t, Tensor) and t.requires_grad]
        if not roots or not wanted:
            return
        torch.autograd.grad(roots, wanted, [torch.ones_like(r) for r in roots], allow_unused=True)

    return forward, backward
