"""Where to cut: a partition of measured node costs, corrected by what its stages really take side by side.

One profile can be wrong (a program that ran beside it, caches that behave otherwise when stages run together). So the
best few partitions run, their stages at the same time as in the pipeline; all that is measured so corrects the costs of
the nodes; and if by the corrected costs another partition is better, that one runs too, until none is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import Any, TypeAlias

import torch
from torch import Tensor

from convoy.graph.graph import Graph
from convoy.graph.partition import nearly_optimal, partition
from convoy.graph.profile import relative_spread
from convoy.graph.random import keyed
from convoy.graph.split import Segment, allowed_cuts, crossing
from convoy.graph.stage_times import Round, Stage, StageTime
from convoy.strategies.base import Loss, Settings
from convoy.strategies.batch import tensors
from convoy.strategies.pipelined.balance_fit import Cuts, fitted, observed
from convoy.strategies.pipelined.current import CurrentWeights
from convoy.strategies.pipelined.derived import derived_parameters
from convoy.strategies.precision import autocast_of

HANDOVER_BYTES_PER_SECOND = 20e9
"""What a cut costs its neighbours: the values are not copied, but they leave the cache of one core for another's."""
SPLIT_SPEED = 1.5  # a stage with two workers is through in its backward's time, two thirds of the whole
APART = 0.015
"""Partitions closer than this share of a stage's load are not worth telling apart by running them."""
WORTH = 0.005
"""A partition that has not run is taken only if it should gain so much over the best that has."""
ROUNDS = 7
CORRECTIONS = 4
"""How often the costs are corrected and another partition is tried at most."""

Trial: TypeAlias = Callable[[Sequence[Cuts], float], Sequence[Sequence[Round]]]
"""Runs the stages of each partition side by side for about so many seconds: partition → rounds."""


@dataclass(frozen=True)
class Balanced:
    """The cuts taken, what their stages take (together), how many partitions ran, and the costs that followed."""

    cuts: Cuts
    times: tuple[StageTime, ...]
    tried: int
    costs: tuple[float, ...] = ()


@dataclass(frozen=True)
class Places:
    """Where a graph may be cut into ``stages``, and what a cut costs: position → seconds; ``speeds`` of the workers."""

    allowed: tuple[int, ...]
    stages: int
    crossing: Mapping[int, float]
    speeds: tuple[float, ...]

    @classmethod
    def of(cls, graph: Graph, stages: int, split_placement: bool) -> Places:
        allowed = tuple(allowed_cuts(graph))
        bytes_at = {p: sum(graph.by_name[name].output_bytes for name in crossing(graph, p)) for p in allowed}
        speeds = (*([SPLIT_SPEED if split_placement else 1.0] * (stages - 1)), 1.0)
        return cls(allowed, stages, {p: 2 * n / HANDOVER_BYTES_PER_SECOND for p, n in bytes_at.items()}, speeds)

    def best(self, costs: Sequence[float]) -> Cuts:
        return partition(costs, self.allowed, self.stages, crossing=self.crossing, speeds=self.speeds).cuts

    def several(self, costs: Sequence[float], count: int) -> list[Cuts]:
        """The best partition and others within 6 %, best first."""
        found = nearly_optimal(
            costs, self.allowed, self.stages, within=0.06, count=count, apart=APART, crossing=self.crossing,
            speeds=self.speeds,
        )  # fmt: skip
        return [each.cuts for each in found]

    def slowest(self, costs: Sequence[float], cuts: Cuts) -> float:
        """Seconds of the slowest stage."""
        bounds = (0, *cuts, len(costs))
        cost = [self.crossing.get(p, 0.0) for p in bounds]
        loads = [sum(costs[a:b]) for a, b in pairwise(bounds)]
        return max((load + cost[i] + cost[i + 1]) / self.speeds[i] for i, load in enumerate(loads))


def search(costs: Sequence[float], places: Places, trial: Trial, *, budget_seconds: float) -> Balanced:
    """The partition whose slowest stage is fastest, as far as ``budget_seconds`` of trials can tell.

    ``costs``: seconds by node, forward and backward, from a profile. Half of the budget goes to the best few
    partitions by these costs, the rest to those that the corrected costs propose.
    """
    measured: dict[Cuts, list[Round]] = {}
    began = perf_counter()

    def run(chosen: Sequence[Cuts], seconds: float) -> None:
        for cuts, rounds in zip(chosen, trial(chosen, seconds), strict=True):
            measured.setdefault(cuts, []).extend(rounds)

    # So many that each should get three rounds beside the one that warms up.
    each = 4 * sum(costs) / max(places.stages, 1)
    run(places.several(costs, max(1, min(3, int(budget_seconds / 2 / each) if each else 3))), budget_seconds / 2)
    field = fitted(costs, measured)
    for _ in range(CORRECTIONS):
        best = places.best(field)
        known = min(measured, key=lambda cuts: places.slowest(field, cuts))
        gain = 1.0 - places.slowest(field, best) / places.slowest(field, known) if places.slowest(field, known) else 0.0
        left = budget_seconds - (perf_counter() - began)
        if best in measured or gain < WORTH or left <= 0:
            break
        run([best, known], min(left, budget_seconds / 4))
        field = fitted(costs, measured)
    chosen = min(measured, key=lambda cuts: places.slowest(field, cuts))
    best = places.best(field)
    if places.slowest(field, best) < (1.0 - WORTH) * places.slowest(field, chosen):
        chosen = best
    return Balanced(chosen, _times(chosen, field, costs, measured), len(measured), tuple(field))


def _times(
    cuts: Cuts, field: Sequence[float], costs: Sequence[float], measured: Mapping[Cuts, Sequence[Round]]
) -> tuple[StageTime, ...]:
    """Seconds of the stages by the corrected costs; the part that is forward as measured, for this partition or the
    one most like it."""
    like = min(measured, key=lambda other: sum(abs(a - b) for a, b in zip(other, cuts, strict=True)))
    seen = observed(measured[like])
    spread = [relative_spread([f + b for f, b in stage]) for stage in zip(*measured[like], strict=True)]
    sums = [sum(field[a:b]) for a, b in pairwise((0, *cuts, len(field)))]
    return tuple(
        StageTime(total * part, total * (1.0 - part), wide)
        for total, part, wide in zip(sums, seen.forward, spread, strict=True)
    )


def these_cuts(trial: Trial, cuts: Cuts, budget_seconds: float) -> Balanced:
    """What the stages of given cuts take side by side."""
    (rounds,) = trial([cuts], budget_seconds)
    times = tuple(
        StageTime(median(f for f, _ in stage), median(b for _, b in stage), relative_spread([f + b for f, b in stage]))
        for stage in zip(*rounds, strict=True)
    )
    return Balanced(cuts, times, 1)


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
    # As the pipeline will: weights are saved by reference wherever an update may come in between.
    weights = list(segment.module.parameters())
    on_cuda = next((t.device for t in (*inputs, *weights) if isinstance(t, Tensor) and t.is_cuda), None)
    saving = CurrentWeights(weights, derived=derived_parameters(segment.module))

    def forward() -> list[Tensor]:
        with torch.enable_grad(), autocast(), keyed(seed, 0):
            with saving.hooks() if not last else nullcontext():
                outputs = segment.module(*inputs)
            roots = [t for t in tensors(loss(outputs, target) if last else outputs) if t.requires_grad]
        if on_cuda is not None:
            torch.cuda.synchronize(on_cuda)
        return roots

    def backward(roots: list[Tensor]) -> None:
        wanted = [t for t in (*inputs, *weights) if isinstance(t, Tensor) and t.requires_grad]
        if not roots or not wanted:
            return
        torch.autograd.grad(roots, wanted, [torch.ones_like(r) for r in roots], allow_unused=True)
        if on_cuda is not None:
            torch.cuda.synchronize(on_cuda)

    return forward, backward
