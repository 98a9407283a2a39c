"""A plan together with the code of its stages, and where a strategy says to cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from convoy.errors import OptionError
from convoy.graph.cost import Profile
from convoy.graph.graph import Graph
from convoy.graph.split import Segment, allowed_cuts, cut_after_layer, cut_at_module, cut_name, split
from convoy.strategies.batch import arguments
from convoy.strategies.pipelined.describe import Forecast, describe
from convoy.strategies.pipelined.plan import PipelinePlan

if TYPE_CHECKING:
    from convoy.graph.stage_times import StageTime
    from convoy.strategies.pipelined.strategy import Pipelined


@dataclass(frozen=True)
class Planned:
    """A plan together with the code of its stages. ``inputs`` are the value names of the model's own inputs,
    ``strategy`` what was asked for, with what was chosen in place of "auto"; ``rehearsed``: the plan's step is that of
    a few batches that were run."""

    plan: PipelinePlan
    graph: Graph
    segments: tuple[Segment, ...]
    inputs: tuple[str, ...]
    strategy: Pipelined
    profile: Profile | None = None
    profiled_parts: int = 1
    cuts: tuple[int, ...] = ()
    rehearsed: bool = False

    def names(self, cuts: Sequence[int]) -> list[str]:
        """Names that give these cuts again, for decisions and checkpoints."""
        return [cut_name(self.graph, cut) for cut in cuts]

    def with_cuts(self, strategy: Pipelined, times: Sequence[StageTime] | None = None) -> Planned:
        """The same model cut where ``strategy`` says; without ``times``, of its stages, predictions are left out."""
        cuts = positions(strategy, self.graph)
        assert cuts is not None
        segments = split(self.graph, cuts)
        old = self.plan
        known = None if self.profile is None else Forecast(self.profile, self.profiled_parts)
        alone, everyone = old.sequential_seconds, old.everyone_seconds  # whatever the cuts
        if known is not None and times is not None and alone is not None and everyone is not None:
            known = replace(known, times=times, alone_seconds=alone, everyone_seconds=everyone, threads=old.threads)
        plan = describe(
            strategy, self.graph, cuts, segments, old.threads_per_worker, old.batch_size, known, old.state_share
        )
        plan = replace(
            plan, notes=tuple(dict.fromkeys((*plan.notes, *old.notes))),
            sequential_seconds=alone, everyone_seconds=everyone, threads=old.threads,
        )  # fmt: skip
        return replace(self, plan=plan, segments=segments, cuts=tuple(cuts), strategy=strategy, rehearsed=False)

    def bind_inputs(self, x: Any) -> Mapping[str, Any]:
        """``x`` as a batch brings it → value name → tensor.

        By order: a node may have another name than the argument (``input`` is taken by Python and becomes ``input_1``).
        """
        args, kwargs = arguments(x)
        return dict(zip(self.inputs, self.graph.bind(args, kwargs).values(), strict=True))


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
    stages = number_of_stages(strategy)
    if stages == 1:
        return []
    places = len(allowed_cuts(graph))
    if stages - 1 > places:
        raise OptionError(
            f"{stages} stages need {stages - 1} cuts, and {graph.model_name} has {places} places to cut",
            hint=f"ask for at most {places + 1} stages",
        )
    return None


def number_of_stages(strategy: Pipelined) -> int:
    """How many stages ``strategy`` asks for, where it does not say where to cut; not for "auto"."""
    return 2 if strategy.stages is None else int(strategy.stages)
