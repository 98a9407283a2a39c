"""A pipeline's plan from its graph, cuts and measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

from convoy.graph.graph import Graph, Node
from convoy.graph.split import Segment, cut_name
from convoy.strategies.pipelined.clock import delays, staleness_in_updates
from convoy.strategies.pipelined.plan import PipelinePlan, StagePlan, predict

if TYPE_CHECKING:
    from convoy.graph.cost import Profile
    from convoy.graph.stage_times import StageTime
    from convoy.strategies.pipelined.strategy import Pipelined


def describe(
    strategy: Pipelined,
    graph: Graph,
    cuts: Sequence[int],
    segments: Sequence[Segment],
    threads: int,
    batch: int,
    profile: Profile | None = None,
    times: Sequence[StageTime] | None = None,
) -> PipelinePlan:
    """The plan of ``segments``. With ``profile`` it says what the stages keep and what one worker alone would take,
    with ``times`` (stages measured while they ran together) it predicts the step."""
    stage_delays = delays(len(segments), strategy.clock, strategy.slack)
    stale = staleness_in_updates(stage_delays, strategy.accumulate)
    bounds = [0, *cuts, len(graph.nodes)]
    produced = {name: i for i, segment in enumerate(segments, 1) for name in segment.outputs}
    links = sorted({(produced[n], i) for i, s in enumerate(segments, 1) for n in s.inputs if n in produced})
    stages = []
    for index, (segment, (start, stop)) in enumerate(zip(segments, pairwise(bounds), strict=True), 1):
        nodes = [n for n in graph.nodes[start:stop] if n.kind not in ("input", "output", "attribute")]
        names = dict.fromkeys(p for n in nodes for p in n.parameters)
        stages.append(
            StagePlan(
                index=index,
                first=_title(nodes[0]),
                last=_title(nodes[-1]),
                layers=_layers(nodes),
                parameters=sum(graph.parameter_elements[p] for p in names),
                weight_bytes=sum(graph.parameter_bytes[p] for p in names),
                delay=stage_delays[index - 1],
                staleness=stale[index - 1],
                handed_bytes=sum(graph.by_name[name].output_bytes for name in segment.outputs),
                activation_bytes=profile.saved_bytes(start, stop) if profile else None,
                forward_seconds=times[index - 1].forward_seconds if times else None,
                backward_seconds=times[index - 1].backward_seconds if times else None,
            )
        )
    weights = sum(s.weight_bytes for s in stages)
    plan = PipelinePlan(
        model=graph.model_name,
        batch_size=batch,
        clock=strategy.clock if not strategy.slack else f"{strategy.clock} slack {strategy.slack}",
        placement=strategy.placement,
        accumulate=strategy.accumulate,
        delays=stage_delays,
        links=tuple(links),
        threads_per_worker=threads,
        cuts=tuple(cut_name(graph, cut) for cut in cuts),
        stages=tuple(stages),
        stale_share=sum(s.weight_bytes for s in stages[:-1]) / weights if weights else 0.0,
        notes=tuple(graph.notes) + _stash_note(graph, stage_delays),
    )
    if profile is None or times is None:
        return plan
    step, bottleneck = predict(plan)
    return replace(plan, sequential_seconds=profile.seconds, step_seconds=step, bottleneck=bottleneck)


def _stash_note(graph: Graph, stage_delays: Sequence[int]) -> tuple[str, ...]:
    if not graph.derived_weights or not any(stage_delays):
        return ()
    names = ", ".join(graph.derived_weights)
    return (f"{names}: weights computed in the forward pass (weight_norm and the like) are stashed for the backward",)


def _title(node: Node) -> str:
    return node.path or node.name


def _layers(nodes: Sequence[Node]) -> str:
    numbers = [n.layer for n in nodes if n.layer is not None]
    if not numbers:
        return "–"
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}–{numbers[-1]}"
