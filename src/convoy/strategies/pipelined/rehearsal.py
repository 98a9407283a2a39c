"""Where a step is so short that hand-overs and Python's own work count, a few batches say more than a sum of parts."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING

import torch

from convoy.engines.interrupts import interruptible
from convoy.events.event import Event
from convoy.graph.split import split
from convoy.strategies.base import Loss
from convoy.strategies.pipelined.balance_bench import Bench

if TYPE_CHECKING:
    from convoy.strategies.pipelined.planner import Planned

LONGEST_SECONDS = 0.03
"""Of a step that is rehearsed. In longer ones the work itself is nearly all, and is known from the stages."""
WINDOWS, STEPS = 5, 10
"""So many stretches of so many steps; the median counts."""


def rehearse(bench: Bench, planned: Planned, loss: Loss) -> float | None:
    """Seconds of a step, of a copy of the model that trains at a learning rate of 0 on the bench's batch, on the
    engine that the run will have; None where steps are long, or there is no forecast to replace. Nothing of the user's
    changes, the state of random numbers included."""
    plan, strategy = planned.plan, planned.strategy
    if plan.step_seconds is None or plan.step_seconds > LONGEST_SECONDS or len(plan.stages) < 2:
        return None
    if bench.settings.device != "cpu" or strategy.engine not in ("auto", "threads"):
        return None
    from convoy.strategies.pipelined.step import PipelinedStep  # which plans, and so needs this module

    ends: list[float] = []

    def heard(event: Event) -> None:
        if event.kind == "action" and event.data["kind"] == "U" and event.data["subject"] == "1":
            ends.append(event.end)

    scratch, x, y = bench.scratch, *bench.part(1)
    copied = replace(planned, graph=scratch, segments=split(scratch, planned.cuts))
    settings = replace(bench.settings, forecast=False, max_memory=None)
    with torch.random.fork_rng(devices=[]), interruptible():
        step = PipelinedStep(strategy, scratch.program, loss, bench.idle_optimizer(), settings, heard)
        try:
            step.install(copied)
            for _ in range(len(plan.stages) + WINDOWS * STEPS + 2):
                step(x, y)
            step.drain()
        finally:
            step.close()
    first = len(ends) - 2 - WINDOWS * STEPS  # before it the pipeline fills; the last update has no company
    marks = ends[first : first + WINDOWS * STEPS + 1 : STEPS]
    return median((b - a) / STEPS for a, b in pairwise(marks))
