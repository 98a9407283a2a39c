"""Where a step is so short that hand-overs and Python's own work count, a few batches say more than a sum of parts."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise
from statistics import median

import torch

from convoy.engines.engine import EngineOptions
from convoy.engines.interrupts import interruptible
from convoy.engines.program import Store
from convoy.engines.threads import ThreadsEngine
from convoy.events.event import Event
from convoy.graph.split import split
from convoy.strategies.base import Loss
from convoy.strategies.pipelined.assembly import assemble, feeds_of
from convoy.strategies.pipelined.balance_bench import Bench
from convoy.strategies.pipelined.optimizer import snapshot
from convoy.strategies.pipelined.planned import Planned
from convoy.strategies.pipelined.program import Batch

LONGEST_SECONDS = 0.03
"""Of a step that is rehearsed. In longer ones the work itself is nearly all, and is known from the stages."""
WINDOWS, STEPS = 5, 10
"""So many stretches of so many steps; the median counts."""


def rehearse(bench: Bench, planned: Planned, loss: Loss) -> float | None:
    """Seconds of a step, of a copy of the model that trains at a learning rate of 0 on the bench's batch, on the
    engine that the run will have; None where steps are long, or there is no forecast to replace. Nothing of the user's
    changes, the state of random numbers included."""
    plan = planned.plan
    if plan.step_seconds is None or plan.step_seconds > LONGEST_SECONDS or len(plan.stages) < 2:
        return None
    if bench.settings.device != "cpu" or planned.strategy.engine not in ("auto", "threads"):
        return None
    ends: list[float] = []

    def heard(event: Event) -> None:
        if event.kind == "action" and event.data["kind"] == "U" and event.data["subject"] == "1":
            ends.append(event.end)

    copied = replace(planned, graph=bench.scratch, segments=split(bench.scratch, planned.cuts))
    optimizer = bench.idle_optimizer()
    optimizer.zero_grad(set_to_none=True)
    batches = len(plan.stages) + WINDOWS * STEPS + 2
    with torch.random.fork_rng(devices=[]), interruptible():
        program, clock, _ = assemble(copied, loss, optimizer, bench.settings, total_steps=batches)
        lanes = {lane: plan.threads_per_worker for lane in clock.lanes()}
        engine = ThreadsEngine(program, Store(), EngineOptions(lanes=lanes, sink=heard, clock=time.perf_counter))
        try:
            feeds, before = feeds_of(copied, loss, *bench.part(1)), None
            for number in range(batches):
                program.batches[number] = Batch(snapshot(optimizer))
                for index, fed in enumerate(feeds):
                    program.bring(number, index, fed)
                entries = clock.enter(number, len(feeds))
                engine.submit(entries)
                if before is not None:  # as in a run, at most one mini-batch ahead of the first stage
                    engine.wait(before)
                before = next(a for _, a in reversed(entries) if a.kind == "F" and a.subject == "1")
            engine.submit(clock.drain())
            engine.settle()
        finally:
            engine.close()
    first = len(ends) - 2 - WINDOWS * STEPS  # before it the pipeline fills; the last update has no company
    marks = ends[first : first + WINDOWS * STEPS + 1 : STEPS]
    return median((b - a) / STEPS for a, b in pairwise(marks))
