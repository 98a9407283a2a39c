"""From a captured model to the programs of its mini-batches: exact, probing, speculating; and the plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from convoy.engines.modelled import modelled
from convoy.graph.graph import Graph
from convoy.strategies.base import Loss, Settings
from convoy.strategies.precision import autocast_of
from convoy.strategies.speculative.controller import Mode
from convoy.strategies.speculative.cut import cut_part, make_predictor
from convoy.strategies.speculative.faithful import (
    confident_part,
    faithful_part,
    faithful_region,
    make_memory,
    outcomes_of,
    true_from,
)
from convoy.strategies.speculative.kernels import coupled
from convoy.strategies.speculative.lower import How, Part, lower
from convoy.strategies.speculative.outcomes import OutcomeMemory
from convoy.strategies.speculative.plan import Saving, SpeculativePlan
from convoy.strategies.speculative.predictors import LabelMean, Predictor, Room, Zero
from convoy.strategies.speculative.region import Flops, Region, cut_region, logits_of, unit_flops
from convoy.strategies.speculative.strategy import Speculative
from convoy.strategies.speculative.templates import templates
from convoy.strategies.tasks.ops import Task
from convoy.strategies.tasks.program import TaskProgram
from convoy.strategies.tasks.units import Unit, Units, units_of
from convoy.strategies.tasks.update import Updates

ENGINES = 2
FORECAST = (0.0, 0.5, 0.9, 1.0)
"""Acceptances for which the plan predicts."""
_FLOPS_PER_SECOND = 3e10  # one core, roughly: only proportions matter


class Remembered(Protocol):
    """What is learned from exact mini-batches and kept across checkpoints."""

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class Prepared:
    """A model in its present mode (train or eval, frozen weights), ready to be lowered."""

    units: Units
    region: Region
    part: Part
    how: How
    remembered: Remembered
    flops: Flops
    memory_bytes: int

    @property
    def classes(self) -> int:
        """How many labels there are."""
        return self.units.specs[logits_of(self.units)].shape[1]

    @property
    def speculated_share(self) -> float:
        """Of the backward pass's operations."""
        backward = sum(i + g for _, i, g in self.flops.values())
        inside = sum(sum(self.flops[name][1:]) for name in self.region.inside)
        return inside / backward if backward else 0.0


@dataclass(slots=True)
class Built:
    """What runs mini-batches of one mode. ``runs``: how many it ran."""

    program: TaskProgram
    runs: int = 0


@dataclass(slots=True)
class Programs:
    """The programs of a prepared model, each made when it is first needed."""

    prepared: Prepared
    built: dict[Mode, Built] = field(default_factory=dict)

    def of(self, mode: Mode) -> Built:
        if mode not in self.built:
            self.built[mode] = Built(program(self.prepared, mode))
        return self.built[mode]


def prepare(
    strategy: Speculative, graph: Graph, model: nn.Module, loss: Loss, optimizer: Optimizer, settings: Settings,
    kept: Remembered | None, inputs: Mapping[str, Tensor],
) -> Prepared:  # fmt: skip
    """``kept``: what was remembered so far by a step whose model has changed its mode since. ``inputs``: a batch, for
    its sizes."""
    units = units_of(graph, torch.bfloat16 if settings.precision == "bfloat16" else None)
    flops = unit_flops(units)
    formed = _cut(strategy, units, settings, kept) if strategy.form == "cut" else _faithful(
        strategy, units, settings, kept, flops, inputs
    )  # fmt: skip

    def seconds(kind: str, unit: Unit, share: float) -> float:
        return flops[unit.name]["FIG".index(kind)] * share / _FLOPS_PER_SECOND

    updates = Updates(optimizer, model, settings.clip)
    how = How(loss, updates, settings.seed, autocast_of(settings), seconds)
    return Prepared(units, formed.region, formed.part, how, formed.remembered, flops, formed.memory_bytes)


@dataclass(frozen=True)
class _Formed:
    region: Region
    part: Part
    remembered: Remembered
    memory_bytes: int


def _cut(strategy: Speculative, units: Units, settings: Settings, kept: Remembered | None) -> _Formed:
    region, choice = cut_region(units, strategy.cut), strategy.choice
    predictor = make_predictor(units, region, choice, strategy.memory_bytes, settings.seed, settings.channels_last)
    predictor = predictor if kept is None else cast(Predictor, kept)
    part = cut_part(units, region, predictor, choice, strategy.limit, settings.seed, settings.channels_last)
    return _Formed(region, part, predictor, choice.kind.bytes(predictor.room))


def _faithful(
    strategy: Speculative, units: Units, settings: Settings, kept: Remembered | None, flops: Flops,
    inputs: Mapping[str, Tensor],
) -> _Formed:  # fmt: skip
    choice, mean = strategy.choice, strategy.choice.kind is LabelMean
    region = faithful_region(units, remembering=not choice.kind.silent)
    if choice.kind.silent:
        part = confident_part(region, choice, strategy.limit, settings.seed)
        return _Formed(region, part, Zero(Room((), 0, 0)), 0)
    where, names = true_from(units, flops, strategy.cut)
    remembers = outcomes_of(units, names, mean)
    memory = make_memory(units, remembers, mean, strategy.memory_bytes)
    memory = memory if kept is None else cast(OutcomeMemory, kept)
    made = templates(units, inputs)
    part = faithful_part(units, region, names, memory, made, strategy.limit, settings.seed)
    return _Formed(replace(region, cut=where), part, memory, OutcomeMemory.bytes(remembers, memory.classes))


def program(prepared: Prepared, mode: Mode) -> TaskProgram:
    lowered = lower(prepared.units, prepared.part, mode, prepared.how)
    inputs = [f"y.{node.name}" for node in prepared.units.graph.nodes if node.kind == "input"]
    return TaskProgram(lowered, [Task(op.kind, op.subject, [op]) for op in lowered.ops], inputs)


def describe(strategy: Speculative, prepared: Prepared, engines: int, threads: int, batch_size: int) -> SpeculativePlan:
    """The plan of a prepared model. Its predictions count operations: the same on every machine."""
    graph = prepared.units.graph
    one = forecast(prepared, "exact", 1, 0.0)

    def saving(mode: Mode, accepted: float) -> float:
        return 1.0 - forecast(prepared, mode, engines, accepted) / one if one else 0.0

    return SpeculativePlan(
        model=graph.model_name,
        batch_size=batch_size,
        form=str(strategy.form),
        cut=prepared.region.cut,
        speculated_share=prepared.speculated_share,
        predictor=str(strategy.predictor),
        threshold=strategy.threshold,
        warmup=strategy.warmup,
        controller=strategy.controller,
        engines=engines,
        threads_per_engine=threads,
        actions=len(program(prepared, "speculate").recurring.entries),
        memory_bytes=prepared.memory_bytes,
        memory_limit_bytes=strategy.memory_bytes,
        savings=tuple(Saving(a, round(saving("speculate", a), 4)) for a in FORECAST),
        exact_saving=round(saving("exact", 0.0), 4),
        remembered=tuple(u.name for u in prepared.units.units if u.name in prepared.part.remembered),
        notes=(*_notes(prepared), *graph.notes),
    )


def forecast(prepared: Prepared, mode: Mode, engines: int, accepted: float) -> float:
    """Seconds that a mini-batch takes equal engines, from its operations alone; only proportions mean something."""
    assumed = replace(prepared, how=replace(prepared.how, accepted=accepted))
    ops = lower(prepared.units, assumed.part, mode, assumed.how).ops
    recurring = program(assumed, mode).recurring
    workers = [f"engine {i + 1}" for i in range(engines)]
    return modelled(recurring, [0.0, *(op.seconds for op in ops)], workers).finish


def _notes(prepared: Prepared) -> tuple[str, ...]:
    normed = [u.name for u in prepared.units.units if u.name in prepared.region.inside and coupled(u)]
    if not normed:
        return ()
    return (
        "BatchNorm couples samples: below it, rejected samples are exact only where all of a mini-batch are rejected",
    )
