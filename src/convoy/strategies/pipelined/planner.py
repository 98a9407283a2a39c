"""From a model and one batch to a plan and its stages: capture, measure, cut, predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from convoy.errors import OptionError
from convoy.graph.capture import capture
from convoy.graph.cost import Profile, measure
from convoy.graph.graph import Graph
from convoy.graph.split import Segment, allowed_cuts, cut_after_layer, cut_at_module, cut_name, split
from convoy.schedule.plan import megabytes
from convoy.strategies.base import Loss, Settings
from convoy.strategies.batch import batch_size
from convoy.strategies.pipelined.balance import Places, search, stage_trial, these_cuts
from convoy.strategies.pipelined.describe import describe
from convoy.strategies.pipelined.loss import inexact_mean
from convoy.strategies.pipelined.plan import PipelinePlan

if TYPE_CHECKING:
    from convoy.strategies.pipelined.strategy import Pipelined


PROFILE_SECONDS = 6.0
"""Time for measuring the nodes one by one."""
TRIAL_SECONDS = 8.0
"""Time for running stages side by side."""
AGREE = 0.005
"""Measuring goes on until two halves of the passes agree so far on where a share of the work ends."""


@dataclass(frozen=True)
class Planned:
    """A plan together with the code of its stages. ``inputs`` are the value names of the model's own inputs."""

    plan: PipelinePlan
    graph: Graph
    segments: tuple[Segment, ...]
    inputs: tuple[str, ...]
    profile: Profile | None = None
    cuts: tuple[int, ...] = ()

    def names(self, cuts: Sequence[int]) -> list[str]:
        """Names that give these cuts again, for decisions and checkpoints."""
        return [cut_name(self.graph, cut) for cut in cuts]

    def with_cuts(self, strategy: Pipelined) -> Planned:
        """The same model cut where ``strategy`` says; predictions are left out."""
        cuts = positions(strategy, self.graph)
        assert cuts is not None
        segments = split(self.graph, cuts)
        old = self.plan
        plan = describe(strategy, self.graph, cuts, segments, old.threads_per_worker, old.batch_size, self.profile)
        return replace(self, plan=plan, segments=segments, cuts=tuple(cuts))

    def bind_inputs(self, x: Any) -> Mapping[str, Any]:
        """``x`` as a batch brings it → value name → tensor.

        By order: a node may have another name than the argument (``input`` is taken by Python and becomes ``input_1``).
        """
        args, kwargs = arguments(x)
        return dict(zip(self.inputs, self.graph.bind(args, kwargs).values(), strict=True))


def arguments(x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How a batch's ``x`` is passed to the model: a mapping by keyword, a tuple or list by position."""
    if isinstance(x, Mapping):
        return (), dict(x)
    if isinstance(x, (tuple, list)):
        return tuple(x), {}
    return (x,), {}


def available_threads(settings: Settings) -> int:
    """Intra-op threads to share among the workers: the settings' number, else as many as PyTorch would use here."""
    return settings.threads or torch.get_num_threads()


def positions(strategy: Pipelined, graph: Graph) -> list[int] | None:
    """Where the user said to cut, as positions in the graph; None for an automatic choice."""
    if strategy.cuts is not None:
        found = [cut_at_module(graph, place) for place in strategy.cuts]
        if any(a >= b for a, b in pairwise(found)):
            raise OptionError(
                f"cuts {list(strategy.cuts)} are not in the order in which {graph.model_name} runs them",
                hint="name the first module of each stage after the first, in computing order",
            )
        return found
    if strategy.ppv is not None:
        layers = len(graph.layers)
        if strategy.ppv and strategy.ppv[-1] >= layers:
            raise OptionError(
                f"ppv {list(strategy.ppv)} goes past the last place to cut: {graph.model_name} has {layers} layers",
                hint=f"layer numbers in a ppv go from 1 to {layers - 1}",
            )
        return [cut_after_layer(graph, layer) for layer in strategy.ppv]
    if strategy.stages == 1:
        return []
    places = len(allowed_cuts(graph))
    if (strategy.stages or 2) - 1 > places:
        raise OptionError(
            f"{strategy.stages or 2} stages need {(strategy.stages or 2) - 1} cuts, and {graph.model_name} has "
            f"{places} places to cut",
            hint=f"ask for at most {places + 1} stages",
        )
    return None


def plan_pipeline(strategy: Pipelined, model: nn.Module, loss: Loss, x: Any, y: Any, settings: Settings) -> Planned:
    """Capture ``model`` on the batch ``x``, decide the cuts and predict what they bring.

    Measures where the cuts are automatic, where a forecast is wanted and where memory is bounded. Raises ModelError
    and OptionError for what cannot be cut as asked, or does not fit.
    """
    args, kwargs = arguments(x)
    graph = capture(model, args, kwargs)
    cuts = positions(strategy, graph)
    stages = len(cuts) + 1 if cuts is not None else strategy.stages or 2
    threads = max(1, available_threads(settings) // _workers(strategy, stages))
    inputs = tuple(n.name for n in graph.nodes if n.kind == "input")
    profile, times = None, None
    if cuts is None or settings.forecast or settings.max_memory is not None:
        profile = measure(
            graph, args, kwargs, loss=loss, target=y, repeats=6, budget_seconds=PROFILE_SECONDS, threads=threads,
            seed=settings.seed, precision=settings.precision, apart=False, agree=AGREE,
        )  # fmt: skip
        graph = profile.graph
        values = dict(zip(inputs, graph.bind(args, kwargs).values(), strict=True))
        trial = stage_trial(graph, threads, values, y, loss, settings)
        if cuts is None:
            places = Places.of(graph, stages, strategy.placement == "split")
            found = search(profile.costs, places, trial, budget_seconds=TRIAL_SECONDS)
        else:
            found = these_cuts(trial, tuple(cuts), TRIAL_SECONDS / 2)
        cuts, times = list(found.cuts), found.times
    assert cuts is not None
    segments = split(graph, cuts)
    plan = describe(strategy, graph, cuts, segments, threads, batch_size(x), profile, times)
    reason = inexact_mean(loss) if strategy.accumulate > 1 else None
    if reason is not None:
        note = f"with {reason} the mean over micro-batches is not exactly the mean over the mini-batch"
        plan = replace(plan, notes=(*plan.notes, note))
    if settings.max_memory is not None:
        _check_memory(plan, settings.max_memory)
    return Planned(plan, graph, segments, inputs, profile, tuple(cuts))


def _check_memory(plan: PipelinePlan, limit: int) -> None:
    """Refuse a plan whose weights, gradients and activations do not fit."""
    need = (plan.activation_bytes or 0) + plan.weights_held_bytes
    if need <= limit:
        return
    sequential = (plan.sequential_activation_bytes or 0) + plan.weights_held_bytes
    hint = "use a smaller batch"
    if plan.clock == "registers":
        hint = "clock='1f1b' holds half as many activations, accumulate=4 a quarter"
    elif plan.accumulate == 1:
        hint = "accumulate=4 holds a quarter of the activations"
    raise OptionError(
        f"this pipeline holds {megabytes(need)} at its peak (sequential training {megabytes(sequential)}), and "
        f"max_memory is {megabytes(limit)}",
        hint=hint,
    )


def _workers(strategy: Pipelined, stages: int) -> int:
    return 2 * stages - 1 if strategy.placement == "split" else stages
