"""From a captured model to the program of a step: units, operations, tasks, slots."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from convoy.graph.graph import Graph
from convoy.schedule.plan import Plan
from convoy.strategies.base import Loss, Settings
from convoy.strategies.precision import autocast_of
from convoy.strategies.tasks.fuse import fuse, separate
from convoy.strategies.tasks.lower import Lowering, lower
from convoy.strategies.tasks.ops import Partition
from convoy.strategies.tasks.plan import TaskPlan, UnitPlan
from convoy.strategies.tasks.program import TaskProgram
from convoy.strategies.tasks.tiles import partitions, slices
from convoy.strategies.tasks.units import Unit, Units, units_of
from convoy.strategies.tasks.update import Updates

UPDATE_ELEMENTS = 65536
"""Weights that make an update worth an action of its own, where units are fused."""


@dataclass(slots=True)
class Built:
    """What runs batches of one number of tiles. ``runs``: how many it ran."""

    program: TaskProgram
    plan: Plan
    runs: int = 0


@dataclass(frozen=True, slots=True)
class Bound:
    """What a step was bound to, and the captured model in its present mode (train or eval, frozen weights)."""

    graph: Graph
    units: Units
    model: nn.Module
    loss: Loss
    optimizer: Optimizer
    settings: Settings
    workers: int

    @classmethod
    def of(
        cls, graph: Graph, model: nn.Module, loss: Loss, optimizer: Optimizer, settings: Settings, workers: int
    ) -> Bound:
        compute = torch.bfloat16 if settings.precision == "bfloat16" else None
        return cls(graph, units_of(graph, compute), model, loss, optimizer, settings, workers)

    def tiles_for(self, samples: int, usual: int | None = None) -> int:
        """Into how many tiles a mini-batch of ``samples`` is cut: ``usual`` (None: as suits the first one), or not at
        all if it is tiny."""
        usual = usual or slices(self.units, self.workers, self.graph.batch_size)
        return usual if samples >= usual else 1


def build(bound: Bound, tiles: int) -> Built:
    """The program of a step. With one worker and whole batches each node is an action; else what fits is fused."""
    graph, units, settings = bound.graph, bound.units, bound.settings
    cuts = partitions(units, tiles)
    together = tiles > 1 or bound.workers > 1
    how = Lowering(
        loss=bound.loss,
        updates=Updates(bound.optimizer, bound.model, settings.clip),
        partitions=cuts,
        update_elements=UPDATE_ELEMENTS if together else 0,
        seed=settings.seed,
        autocast=autocast_of(settings),
    )
    lowered = lower(units, how)
    tasks = (fuse if together else separate)(lowered.ops)
    inputs = [f"y.{node.name}" for node in graph.nodes if node.kind == "input"]
    program = TaskProgram(lowered, tasks, inputs)
    plan = TaskPlan(
        model=graph.model_name,
        batch_size=graph.batch_size,
        workers=bound.workers,
        actions=len(program.recurring.entries),
        units=tuple(
            UnitPlan(u.name, _kind(u), _tiles(cuts[u.name]), sum(p.numel() for p in u.parameters)) for u in units.units
        ),
        without_rule=units.without_rule,
        notes=graph.notes,
    )
    return Built(program, plan)


def _kind(unit: Unit) -> str:
    if unit.bound is not None:
        return unit.bound.rule.kind
    return "+".join(dict.fromkeys(node.kind for node in (unit.segment.nodes if unit.segment is not None else ())))


def _tiles(cut: Partition) -> str:
    return {"whole": "whole", "samples": f"{cut.count} slices", "channels": f"{cut.count} by channels"}[cut.axis]
