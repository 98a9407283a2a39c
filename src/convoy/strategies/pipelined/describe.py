"""A pipeline's plan from its graph, cuts and measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from convoy.graph.graph import Graph, Node
from convoy.graph.split import Segment, crossing, cut_name
from convoy.strategies.pipelined.clock import age, delays, staleness_in_updates
from convoy.strategies.pipelined.corrections import Corrections
from convoy.strategies.pipelined.plan import PipelinePlan, StagePlan, predict

if TYPE_CHECKING:
    from convoy.graph.cost import Profile
    from convoy.graph.stage_times import StageTime
    from convoy.strategies.pipelined.strategy import Pipelined

FRESH = 1.0
"""Updates by which weights may be old before another clock is advised. Those of the published clock at K = 1, two, cost
1.6 points with a late cut (docs/lab)."""
LITTLE = 1.1
"""A gain below this over sequential training on the same threads is not worth stale weights."""
MOST_JITTER = 0.1
"""Stage times that vary more than this were disturbed; a run is not expected to be."""


@dataclass(frozen=True)
class Forecast:
    """What was measured for a plan. ``profile`` is of one of ``parts`` micro-batches; ``times`` (of stages that ran
    side by side), ``alone_seconds`` (a sequential step on a worker's threads) and ``everyone_seconds`` (on all
    ``threads``) are for a mini-batch."""

    profile: Profile
    parts: int
    times: Sequence[StageTime] | None = None
    alone_seconds: float = 0.0
    everyone_seconds: float = 0.0
    threads: int = 1


def describe(
    strategy: Pipelined,
    graph: Graph,
    cuts: Sequence[int],
    segments: Sequence[Segment],
    threads: int,
    batch: int,
    forecast: Forecast | None = None,
    state_share: float = 1.0,
) -> PipelinePlan:
    """The plan of ``segments``. With ``forecast`` it says what the stages keep and predicts the step; ``state_share``:
    bytes of optimizer state for a byte of trained weights."""
    profile = None if forecast is None else forecast.profile
    times = None if forecast is None else forecast.times
    parts = 1 if forecast is None else forecast.parts
    corrections = Corrections.parse(strategy.correction)
    stage_delays = delays(len(segments), strategy.clock, strategy.slack)
    stale = staleness_in_updates(stage_delays, strategy.accumulate)
    bounds = [0, *cuts, len(graph.nodes)]
    produced = {name: i for i, segment in enumerate(segments, 1) for name in segment.outputs}
    links = sorted({(produced[n], i) for i, s in enumerate(segments, 1) for n in s.inputs if n in produced})
    stages = []
    for index, (segment, (start, stop)) in enumerate(zip(segments, pairwise(bounds), strict=True), 1):
        nodes = [n for n in graph.nodes[start:stop] if n.kind not in ("input", "output", "attribute")]
        names = dict.fromkeys(p for n in nodes for p in n.parameters)
        trained = sum(graph.parameter_bytes[p] for p in names if graph.parameters[p].requires_grad)
        stages.append(
            StagePlan(
                index=index,
                first=_title(nodes),
                last=_title(nodes[::-1]),
                layers=_layers(nodes),
                parameters=sum(graph.parameter_elements[p] for p in names),
                weight_bytes=sum(graph.parameter_bytes[p] for p in names),
                delay=stage_delays[index - 1],
                staleness=stale[index - 1],
                handed_bytes=sum(graph.by_name[name].output_bytes for name in segment.outputs),
                activation_bytes=kept_bytes(profile, graph, start, stop, parts) if profile else None,
                forward_seconds=times[index - 1].forward_seconds if times else None,
                backward_seconds=times[index - 1].backward_seconds if times else None,
                extra_weight_bytes=round(
                    corrections.copies(stale[index - 1]) * sum(graph.parameter_bytes[p] for p in names)
                ),
                training_bytes=round((1.0 + state_share) * trained),
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
        correction=str(corrections) if corrections else None,
        state_share=state_share,
    )
    if forecast is None or forecast.times is None:
        return replace(plan, advice=advice(plan))
    jitter = min(max((time.spread for time in forecast.times), default=0.0) / 1.35, MOST_JITTER)
    step, bottleneck = predict(plan, jitter)
    plan = replace(
        plan, sequential_seconds=forecast.alone_seconds, everyone_seconds=forecast.everyone_seconds,
        threads=forecast.threads, step_seconds=step, bottleneck=bottleneck,
    )  # fmt: skip
    return replace(plan, advice=advice(plan))


def advice(plan: PipelinePlan) -> str | None:
    """One sentence where training without a pipeline would do as well, or nearly, else where weights are so old that
    another clock is worth it."""
    if len(plan.stages) < 2:
        return None
    return _little_gain(plan) or _too_stale(plan)


def _too_stale(plan: PipelinePlan) -> str | None:
    stalest = max(stage.staleness for stage in plan.stages)
    if stalest <= FRESH:
        return None
    better = []
    if plan.clock == "registers" and plan.placement == "colocated":
        better.append("clock='1f1b'")
    if plan.accumulate < 4:
        better.append("accumulate=4")
    if plan.correction is None:
        better.append("correction='predict+spike' (for SGD with momentum)")
    if not better:
        return None
    return (
        f"weights are up to {age(stalest)}, which can cost accuracy: try {', '.join(better)}, with all of "
        "which two and four stages of ResNet-20 ended level with plain training"
    )


def _little_gain(plan: PipelinePlan) -> str | None:
    if plan.everyone_seconds is None or plan.step_seconds is None:
        return None
    alone = plan.sequential_seconds or plan.everyone_seconds
    threads = plan.threads if plan.everyone_seconds <= alone else plan.threads_per_worker
    gain = min(plan.everyone_seconds, alone) / plan.step_seconds
    if gain >= LITTLE:
        return None
    what = f"sequential training on {threads} thread{'s' * (threads > 1)}"
    much = f"is {1 / gain:.2f} times as fast" if gain < 1 else f"takes only {gain:.2f} times as long"
    return f"{what} {much} and has no stale weights: train sequentially"


def _stash_note(graph: Graph, stage_delays: Sequence[int]) -> tuple[str, ...]:
    if not graph.derived_weights or not any(stage_delays):
        return ()
    names = ", ".join(graph.derived_weights)
    return (f"{names}: weights computed in the forward pass (weight_norm and the like) are stashed for the backward",)


def _title(nodes: Sequence[Node]) -> str:
    """The first of ``nodes`` as the user knows it: its module, or where in which module the call is written. Calls
    that only take values apart are passed over."""
    for node in nodes:
        if node.path:
            return node.path
        if node.kind not in _GLUE:
            return f"{node.scope} ({node.kind})" if node.scope else node.kind
    return nodes[0].scope or nodes[0].kind


def kept_bytes(profile: Profile, graph: Graph, start: int, stop: int, parts: int = 1) -> int:
    """What a stage keeps of a mini-batch: what autograd saves there (``profile`` knows it of one of ``parts``), and
    what it hands on without having saved it (the content of the pipeline register, which waits for the next stage)."""
    saved, last = profile.saved_bytes(start, stop) * parts, len(graph.nodes)
    if stop == last:
        return saved
    handed = sum(graph.by_name[name].output_bytes for name in crossing(graph, stop))
    on_both_sides = saved + (profile.saved_bytes(stop, last) - profile.saved_bytes(start, last)) * parts
    return saved + max(0, handed - on_both_sides)


_GLUE = frozenset(("getitem", "size", "attribute", "identity", "detach", "other", "chunk", "split"))


def _layers(nodes: Sequence[Node]) -> str:
    numbers = [n.layer for n in nodes if n.layer is not None]
    if not numbers:
        return "–"
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}–{numbers[-1]}"
