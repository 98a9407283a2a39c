"""From a model and one batch to a plan and its stages: capture, measure, cut, predict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from convoy.errors import OptionError
from convoy.graph.capture import capture
from convoy.graph.graph import Graph
from convoy.graph.split import Segment, allowed_cuts, cut_after_layer, cut_at_module, split
from convoy.strategies.base import Loss, Settings
from convoy.strategies.batch import batch_size
from convoy.strategies.pipelined.describe import describe
from convoy.strategies.pipelined.loss import inexact_mean
from convoy.strategies.pipelined.plan import PipelinePlan

if TYPE_CHECKING:
    from convoy.graph.cost import Profile
    from convoy.strategies.pipelined.strategy import Pipelined


@dataclass(frozen=True)
class Planned:
    """A plan together with the code of its stages. ``inputs`` are the value names of the model's own inputs."""

    plan: PipelinePlan
    graph: Graph
    segments: tuple[Segment, ...]
    inputs: tuple[str, ...]
    profile: Profile | None = None

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
        found = [cut_at_module(graph, path) for path in strategy.cuts]
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

    Measures where the cuts are automatic. Raises ModelError and OptionError for what cannot be cut as asked.
    """
    args, kwargs = arguments(x)
    graph = capture(model, args, kwargs)
    cuts = positions(strategy, graph)
    workers = _workers(strategy, len(cuts) + 1 if cuts is not None else strategy.stages or 2)
    threads = max(1, available_threads(settings) // workers)
    profile = None
    if cuts is None:
        from convoy.graph.cost import measure
        from convoy.strategies.pipelined.balance import balanced_cuts

        profile = measure(graph, args, kwargs, threads=threads, seed=settings.seed, precision=settings.precision)
        graph = profile.graph
        cuts = balanced_cuts(profile, strategy.stages or 2)
    segments = split(graph, cuts)
    plan = describe(strategy, graph, cuts, segments, threads, batch_size(x), profile)
    inexact = inexact_mean(loss) if strategy.accumulate > 1 else None
    if inexact is not None:
        note = f"the loss has {inexact}: micro-batches are weighted by their samples, which is not its exact mean"
        plan = replace(plan, notes=(*plan.notes, note))
    return Planned(plan, graph, segments, tuple(n.name for n in graph.nodes if n.kind == "input"), profile)


def _workers(strategy: Pipelined, stages: int) -> int:
    return 2 * stages - 1 if strategy.placement == "split" else stages
