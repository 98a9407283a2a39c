"""What a plan comes to on the engine: the program of its stages, their schedule, and a batch in parts."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

from convoy.strategies.base import Loss, Settings
from convoy.strategies.batch import batch_size
from convoy.strategies.pipelined.clock import PipelineSchedule
from convoy.strategies.pipelined.corrections import Corrections
from convoy.strategies.pipelined.devices import spread
from convoy.strategies.pipelined.loss import reduces_to_sum
from convoy.strategies.pipelined.optimizer import StageOptimizer
from convoy.strategies.pipelined.parts import split_parts
from convoy.strategies.pipelined.planned import Planned
from convoy.strategies.pipelined.program import Fed, PipelineProgram, Stage
from convoy.strategies.pipelined.weights import policy
from convoy.strategies.precision import autocast_of


def assemble(
    planned: Planned,
    loss: Loss,
    optimizer: Optimizer,
    settings: Settings,
    *,
    total_steps: int | None = None,
    start: int = 0,
    began: int = 0,
) -> tuple[PipelineProgram, PipelineSchedule, list[torch.device | None]]:
    """The stages with their shares of ``optimizer``, from mini-batch ``start`` on, and the device of each stage.
    ``began``: the mini-batch with which the pipeline began, of ``total_steps`` that the run has."""
    plan, segments, strategy = planned.plan, planned.segments, planned.strategy
    producers = {name: 0 for name in planned.inputs}
    producers |= {name: i for i, segment in enumerate(segments, 1) for name in segment.outputs}
    devices = spread(segments, settings.device)
    corrections = Corrections.parse(strategy.correction)
    stages = []
    for i, (segment, device) in enumerate(zip(segments, devices, strict=True), 1):
        share = StageOptimizer(optimizer, segment.parameters.values())
        delay = plan.delays[i - 1] / strategy.accumulate
        weights = policy(segment, share, delay, corrections, total_steps, began)
        stages.append(Stage(i, segment, producers, weights, device))
    program = PipelineProgram(stages, loss, seed=settings.seed, autocast=autocast_of(settings), clip=settings.clip)
    clock = PipelineSchedule(plan.delays, program.links, program.fed, strategy.placement, start)
    return program, clock, list(devices)


def feeds_of(planned: Planned, loss: Loss, x: Any, y: Any) -> list[Fed]:
    """The batch in parts, each with its share of the loss. Raises DataError for a batch that does not fit."""
    whole = batch_size(x)
    parts = min(planned.strategy.accumulate, whole)
    alone = parts == 1 or reduces_to_sum(loss)
    return [
        Fed(planned.bind_inputs(part_x), part_y, 1.0 if alone else size / whole)
        for part_x, part_y, size in split_parts(x, y, whole, parts)
    ]
