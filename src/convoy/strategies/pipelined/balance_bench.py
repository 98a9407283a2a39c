"""What can be measured of one model and one batch on this machine, each thing once.

Times are for a whole mini-batch, also where it enters in micro-batches and a micro-batch is what runs; the optimizer's
step, and adding up the gradients of micro-batches, are in the backward time.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from convoy.engines.interrupts import interruptible
from convoy.graph.capture import capture
from convoy.graph.cost import Profile, measure
from convoy.graph.graph import Graph
from convoy.graph.split import split
from convoy.graph.stage_times import Round, stage_rounds
from convoy.strategies.base import Loss, Settings
from convoy.strategies.batch import arguments, batch_size, map_tensors
from convoy.strategies.pipelined.balance import ROUNDS, Balanced, Places, Trial, runnable, search, these_cuts
from convoy.strategies.pipelined.balance_fit import Cuts
from convoy.strategies.pipelined.parts import split_parts
from convoy.strategies.update_seconds import adding_seconds, like, state_share, update_seconds

PROFILE_SECONDS = 6.0
"""Time for measuring the nodes one by one."""
AGREE = 0.005
"""Measuring goes on until two halves of the passes agree so far on where a share of the work ends."""
TRIAL_SECONDS = 8.0
"""Time for running stages side by side where the cuts are looked for; half of it where they are given."""
WHOLE_SECONDS = 1.5
"""Time for the model as a whole on so many threads."""


class Bench:
    """Captures ``model`` on ``x``; measures when asked, within ``hurry`` times the usual budgets. The model stays as it
    was."""

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        x: Any,
        y: Any,
        settings: Settings,
        optimizer: Optimizer | None = None,
        hurry: float = 1.0,
    ) -> None:
        args, kwargs = arguments(x)
        self.graph: Graph = capture(model, args, kwargs)
        self.inputs = tuple(n.name for n in self.graph.nodes if n.kind == "input")
        self.samples = batch_size(x)
        self.settings = settings
        self.optimizer = optimizer
        self._loss, self._x, self._y, self._hurry = loss, x, y, hurry
        self._profiles: dict[tuple[int, int], Profile] = {}
        self._updates: dict[int, float] = {}
        self._adding: dict[int, float] = {}
        self._whole: dict[tuple[int, int], float] = {}
        self._balanced: dict[Any, Balanced] = {}

    def part(self, parts: int) -> tuple[Any, Any]:
        """The first of ``parts`` micro-batches, in memory of its own: what a layer keeps is counted by storage, not
        by view."""
        x, y, _ = split_parts(self._x, self._y, self.samples, min(parts, self.samples))[0]
        return map_tensors(Tensor.clone, x), map_tensors(Tensor.clone, y)

    def profile(self, threads: int, parts: int = 1) -> Profile:
        """The nodes one by one, for one micro-batch."""
        key = (threads, parts)
        if key not in self._profiles:
            x, y = self.part(parts)
            budget = PROFILE_SECONDS * self._hurry
            with interruptible():
                self._profiles[key] = measure(
                    self.graph, *arguments(x), loss=self._loss, target=y, repeats=6, budget_seconds=budget,
                    threads=threads, seed=self.settings.seed, precision=self.settings.precision, apart=False,
                    agree=AGREE,
                )  # fmt: skip
        return self._profiles[key]

    def costs(self, threads: int, parts: int = 1) -> list[float]:
        """Seconds of each node for a mini-batch, forward, backward and update."""
        profile, updates = self.profile(threads, parts), self.updates(threads, parts)
        return [cost * parts + update for cost, update in zip(profile.costs, updates, strict=True)]

    def update(self, threads: int) -> float:
        """Seconds of the optimizer's step for the whole model."""
        if threads not in self._updates:
            with interruptible():
                weights = list(self.graph.parameters.values())
                self._updates[threads] = update_seconds(weights, self.optimizer, threads=threads)
        return self._updates[threads]

    def adding(self, threads: int) -> float:
        """Seconds of adding one more micro-batch's gradients to those of the whole model."""
        if threads not in self._adding:
            with interruptible():
                weights = list(self.graph.parameters.values())
                self._adding[threads] = adding_seconds(weights, threads=threads)
        return self._adding[threads]

    def idle_optimizer(self) -> Optimizer:
        """One like the user's for the weights of ``scratch``, at a learning rate of 0."""
        made = like(self.optimizer, [p for p in self.scratch.program.parameters() if p.requires_grad])
        for group in made.param_groups:
            group["lr"] = 0.0
        return made

    def updates(self, threads: int, parts: int = 1) -> list[float]:
        """Seconds of the optimizer's step, and of adding up gradients of ``parts`` micro-batches before it, by node:
        in proportion to the bytes of its weights."""
        sizes = [sum(self._trained.get(name, 0) for name in node.parameters) for node in self.graph.nodes]
        whole = sum(sizes)
        seconds = self.update(threads) + ((parts - 1) * self.adding(threads) if parts > 1 else 0.0)
        return [seconds * size / whole if whole else 0.0 for size in sizes]

    def trial(self, threads: int, parts: int = 1) -> Trial:
        """Runs stages side by side, on a copy of the program: BatchNorm estimates of the user's stay."""
        x, y = self.part(parts)
        args, kwargs = arguments(x)
        values: Mapping[str, Any] = dict(zip(self.inputs, self.graph.bind(args, kwargs).values(), strict=True))
        updates = self.updates(threads, parts)

        def run(candidates: Sequence[Cuts], seconds: float) -> Sequence[Sequence[Round]]:
            with interruptible():
                made = [
                    runnable(split(self.scratch, cuts), values, y, self._loss, self.settings) for cuts in candidates
                ]
                together = len(made[0]) > 1
                measured = stage_rounds(
                    made, repeats=ROUNDS, budget_seconds=seconds, threads=threads, together=together
                )
            found = []
            for cuts, rounds in zip(candidates, measured, strict=True):
                bounds = (0, *cuts, len(updates))
                extra = [sum(updates[a:b]) for a, b in pairwise(bounds)]
                found.append(
                    [
                        tuple((f * parts, b * parts + u) for (f, b), u in zip(stages, extra, strict=True))
                        for stages in rounds
                    ]
                )
            return found

        return run

    def balanced(self, stages: int, threads: int, parts: int = 1, split_placement: bool = False) -> Balanced:
        """The best cuts into so many stages, and what these take side by side."""
        key = (stages, threads, parts, split_placement)
        if key not in self._balanced:
            places = Places.of(self.graph, stages, split_placement)
            costs, trial = self.costs(threads, parts), self.trial(threads, parts)
            self._balanced[key] = search(costs, places, trial, budget_seconds=TRIAL_SECONDS * self._hurry)
        return self._balanced[key]

    def given(self, cuts: Cuts, threads: int, parts: int = 1) -> Balanced:
        """What the stages of given cuts take side by side."""
        key = (cuts, threads, parts)
        if key not in self._balanced:
            self._balanced[key] = these_cuts(self.trial(threads, parts), cuts, TRIAL_SECONDS / 2 * self._hurry)
        return self._balanced[key]

    def whole(self, threads: int, parts: int = 1) -> float:
        """Seconds a sequential step takes on ``threads`` threads, update included; with ``parts``, of so many
        micro-batches one after the other."""
        key = (threads, parts)
        if parts == 1 and key in self._profiles:
            return sum(self.costs(threads))
        if key not in self._whole:
            found = these_cuts(self.trial(threads, parts), (), WHOLE_SECONDS * self._hurry)
            self._whole[key] = sum(stage.seconds for stage in found.times)
        return self._whole[key]

    @cached_property
    def state_share(self) -> float:
        """Bytes of optimizer state for a byte of trained weights."""
        return state_share(self.optimizer)

    @property
    def weights_bytes(self) -> int:
        """Weights, gradients and optimizer state."""
        whole, trained = sum(self.graph.parameter_bytes.values()), sum(self._trained.values())
        return whole + round((1.0 + self.state_share) * trained)

    @cached_property
    def scratch(self) -> Graph:
        """The graph with weights and estimates of its own, to run and to train."""
        graph = self.graph
        program, parameters, buffers = copy.deepcopy((graph.program, dict(graph.parameters), dict(graph.buffers)))
        return replace(graph, program=program, parameters=parameters, buffers=buffers)

    @cached_property
    def _trained(self) -> Mapping[str, int]:
        return {name: p.nbytes for name, p in self.graph.parameters.items() if p.requires_grad}
