"""From a captured model to the program of a step: units, operations, tasks, slots."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from convoy.graph.graph import Graph
from convoy.strategies.base import Loss, Settings
from convoy.strategies.precision import autocast_of
from convoy.strategies.tasks.lower import Lowering, lower
from convoy.strategies.tasks.ops import Task
from convoy.strategies.tasks.plan import TaskPlan, UnitPlan
from convoy.strategies.tasks.program import TaskProgram
from convoy.strategies.tasks.units import Unit, units_of
from convoy.strategies.tasks.update import Updates


@dataclass(slots=True)
class Built:
    """What runs batches of one number of tiles. ``runs``: how many it ran."""

    program: TaskProgram
    plan: TaskPlan
    runs: int = 0


def build(graph: Graph, model: nn.Module, loss: Loss, optimizer: Optimizer, settings: Settings, workers: int) -> Built:
    """The program of a step, with the model in its present mode (train or eval, frozen weights)."""
    units = units_of(graph, torch.bfloat16 if settings.precision == "bfloat16" else None)
    updates = Updates(optimizer, model, settings.clip)
    lowered = lower(units, Lowering(loss, updates, settings.seed, autocast_of(settings)))
    tasks = [Task(op.kind, op.subject, [op]) for op in lowered.ops]
    inputs = [f"y.{node.name}" for node in graph.nodes if node.kind == "input"]
    program = TaskProgram(lowered, tasks, inputs)
    plan = TaskPlan(
        model=graph.model_name,
        batch_size=graph.batch_size,
        workers=workers,
        actions=len(program.recurring.entries),
        units=tuple(
            UnitPlan(u.name, _kind(graph, u), "whole", sum(p.numel() for p in u.parameters)) for u in units.units
        ),
        without_rule=units.without_rule,
        notes=graph.notes,
    )
    return Built(program, plan)


def _kind(graph: Graph, unit: Unit) -> str:
    if unit.bound is not None:
        return unit.bound.rule.kind
    return "+".join(dict.fromkeys(node.kind for node in (unit.segment.nodes if unit.segment is not None else ())))
