"""From a captured model to tasks of two sorts, what each of them takes, and the plan."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from convoy.graph.capture import capture
from convoy.strategies.batch import arguments, batch_size
from convoy.strategies.concurrent.groups import groups, phase_of, sort_of, why_whole
from convoy.strategies.concurrent.plan import ConcurrentPlan, Considered, planned
from convoy.strategies.concurrent.schedule import CONV, NONCONV, Sort, Work, arrange, bounds
from convoy.strategies.pipelined.optimizer import snapshot
from convoy.strategies.precision import autocast_of
from convoy.strategies.tasks.build import UPDATE_ELEMENTS, Bound
from convoy.strategies.tasks.fuse import fuse
from convoy.strategies.tasks.lower import Lowering, lower
from convoy.strategies.tasks.ops import WHOLE, Frame, Op, Partition, Task
from convoy.strategies.tasks.program import TaskProgram
from convoy.strategies.tasks.timed import action_seconds
from convoy.strategies.tasks.update import Updates

CANDIDATES = (1, 2, 4)
REPEATS = 3
BUDGET_SECONDS = 5.0
"""For the passes after the first, per number of groups."""
WORTHWHILE = 0.93
"""More groups are taken where they should need at most so much of the time: small kernels side by side cost more than
alone (ResNet-50's blocks: four groups took 30 % more core time than two, for 3 % less in the prediction)."""


@dataclass(frozen=True, slots=True)
class Grouped:
    """The program of a step with so many groups, its tasks as the program's schedule has them, and the cuts."""

    program: TaskProgram
    tasks: tuple[Task, ...]
    cuts: Mapping[str, Partition]


def grouped(bound: Bound, count: int) -> Grouped:
    """Lowered, fused within each sort of work, and compiled."""
    units, settings = bound.units, bound.settings
    by_name = {unit.name: unit for unit in units.units}
    cuts = groups(units, count)
    how = Lowering(
        loss=bound.loss,
        updates=Updates(bound.optimizer, bound.model, settings.clip),
        partitions=cuts,
        update_elements=UPDATE_ELEMENTS,
        seed=settings.seed,
        autocast=autocast_of(settings),
    )
    lowered = lower(units, how)

    def sort(op: Op) -> str:
        return sort_of(op.kind, by_name.get(op.subject))

    tasks = fuse(lowered.ops, sort)
    inputs = [f"y.{node.name}" for node in bound.graph.nodes if node.kind == "input"]
    return Grouped(TaskProgram(lowered, tasks, inputs), tuple(tasks), cuts)


def work_of(made: Grouped, bound: Bound, seconds: Sequence[float], placement: str) -> list[Work]:
    """The program's actions with the seconds of each, by place; by kind each has one lane, else either."""
    by_name = {unit.name: unit for unit in bound.units.units}
    ops = [None, *(task.ops[0] for task in made.tasks for _ in range(task.partition.count))]
    found = []
    for (_, action), op, spent in zip(made.program.recurring.entries, ops, seconds, strict=True):
        if op is None:
            found.append(Work(action, NONCONV, "forward"))
            continue
        sort = sort_of(op.kind, by_name.get(op.subject))
        lanes: tuple[Sort, ...] = (sort,) if placement == "kind" else (CONV, NONCONV)
        found.append(Work(action, sort, phase_of(action), dict.fromkeys(lanes, spent)))
    return found


def estimated(made: Grouped) -> list[float]:
    """Seconds by operations and bytes, where nothing may be measured."""
    found = [0.0]
    for task in made.tasks:
        count = task.partition.count
        found += [max(sum(op.seconds for op in task.ops) / count, 1e-6)] * count
    return found


def measured(bound: Bound, count: int, x: Any, y: Any) -> list[float]:
    """Seconds of each action of a step with ``count`` groups, alone in one thread, on a copy of the model. A copy of
    plain SGD stands for the optimizer, whose own state is nobody's to try things with."""
    model = copy.deepcopy(bound.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    graph = capture(model, *arguments(x))
    scratch = Bound.of(graph, model, bound.loss, optimizer, bound.settings, bound.workers)

    def frame(number: int) -> Frame:
        optimizer.zero_grad(set_to_none=True)
        return Frame(number, [], graph.bind(*arguments(x)), y, snapshot(optimizer), batch_size(x))

    return action_seconds(
        grouped(scratch, count).program, frame, device=bound.settings.device, repeats=REPEATS,
        budget_seconds=BUDGET_SECONDS,
    )  # fmt: skip


def worthwhile(more: Considered, fewer: Considered) -> bool:
    """Whether more groups are fast enough to be taken."""
    return more.predicted_seconds < WORTHWHILE * fewer.predicted_seconds


def plan_for(
    bound: Bound, x: Any, y: Any, *, count: int | None, placement: str, threads: tuple[int, int], measuring: bool,
    timing: Callable[[int, Grouped], list[float]] | None = None, build: Callable[[int], Grouped] | None = None,
) -> tuple[ConcurrentPlan, TaskProgram]:  # fmt: skip
    """The plan and its program. ``count`` None: the number of groups that should be fastest. ``timing``: seconds of
    the actions of a program with so many groups, in place of measuring on ``x`` and ``y`` here. Whoever gives it is in
    a hurry, and more groups are tried only as long as they help. ``build``: programs by number of groups, if they are
    there; they stay as they are."""
    options: list[tuple[Considered, list[float], Grouped]] = []
    for candidate in CANDIDATES if count is None else (count,):
        if timing is not None and len(options) > 1 and not worthwhile(options[-1][0], options[-2][0]):
            break
        made = grouped(bound, candidate) if build is None else build(candidate)
        if options and (made.cuts == options[-1][2].cuts or all(cut == WHOLE for cut in made.cuts.values())):
            break  # no layer is wide enough for more
        if timing is not None:
            seconds = timing(candidate, made)
        else:
            seconds = measured(bound, candidate, x, y) if measuring else estimated(made)
        work = work_of(made, bound, seconds, placement)
        considered = Considered(candidate, bounds(work).serial, arrange(work).finish)
        options.append((considered, seconds, made))
    best = options[0]
    for option in options[1:]:
        if worthwhile(option[0], best[0]):
            best = option
    considered, seconds, made = best
    uncut = considered.groups > 1 and all(cut == WHOLE for cut in made.cuts.values())
    asked_in_vain = (why_whole(bound.units, considered.groups),) if uncut else ()
    work = work_of(made, bound, seconds, placement)
    layout = arrange(work)
    plan = planned(
        work,
        layout,
        model=bound.graph.model_name,
        batch_size=bound.graph.batch_size,
        groups=1 if uncut else considered.groups,
        placement=placement,
        threads=threads,
        considered=[option for option, _, _ in options],
        whole=[name for name, cut in made.cuts.items() if cut == WHOLE] if considered.groups > 1 and not uncut else [],
        without_rule=bound.units.without_rule,
        notes=(*asked_in_vain, *bound.graph.notes),
    )
    if not measuring:
        plan = replace(plan, notes=(*plan.notes, "costs are estimated from operations and bytes, not measured"))
    program = copy.copy(made.program)
    program.recurring = plan.recurring()
    return plan, program
