"""From a model and one batch to a plan and its stages: capture, measure, cut, predict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from convoy.engines.driver import callers_threads
from convoy.errors import OptionError
from convoy.graph.split import split
from convoy.schedule.plan import megabytes
from convoy.strategies.base import Loss, Settings
from convoy.strategies.pipelined.auto import CLOSE, choices, without_pipeline, workers_at_hand
from convoy.strategies.pipelined.balance_bench import Bench
from convoy.strategies.pipelined.clock import age
from convoy.strategies.pipelined.describe import Forecast, advice, describe
from convoy.strategies.pipelined.loss import inexact_mean
from convoy.strategies.pipelined.plan import PipelinePlan
from convoy.strategies.pipelined.planned import Planned, number_of_stages, positions
from convoy.strategies.pipelined.rehearsal import rehearse

if TYPE_CHECKING:
    from convoy.strategies.pipelined.strategy import Pipelined

MOST_TRIED = 3
"""Possibilities whose stages are run side by side, until one keeps the bounds on memory and staleness."""


def available_threads(settings: Settings) -> int:
    """Intra-op threads to share among the workers: the settings' number, else as many as PyTorch would use here."""
    return settings.threads or callers_threads()


def plan_pipeline(
    strategy: Pipelined,
    model: nn.Module,
    loss: Loss,
    x: Any,
    y: Any,
    settings: Settings,
    optimizer: Optimizer | None = None,
) -> Planned:
    """Capture ``model`` on the batch ``x``, decide the cuts and predict what they bring.

    Measures where something is chosen automatically, where a forecast is wanted and where memory is bounded;
    ``optimizer`` says what an update costs. Raises ModelError and OptionError for what cannot be cut as asked, or
    does not fit.
    """
    return plan_on(Bench(model, loss, x, y, settings, optimizer), strategy, loss)


def plan_on(bench: Bench, strategy: Pipelined, loss: Loss, at: Sequence[int] | None = None) -> Planned:
    """The same with a bench, on which other plans may be made too; ``at``: positions of the cuts, where known."""
    if strategy.stages == "auto":
        return _chosen(bench, strategy, loss)
    made = _planned(bench, strategy, loss, at)
    _check_memory(made.plan, bench.settings.max_memory)
    _check_staleness(made.plan, strategy)
    return made


def _chosen(bench: Bench, asked: Pipelined, loss: Loss) -> Planned:
    """The best possibility whose plan keeps the bounds; none but plain training where a rehearsal shows no gain."""
    total, refused = available_threads(bench.settings), None
    for tried, (strategy, reason) in enumerate(choices(asked, bench, workers_at_hand(bench.settings)), 1):
        made = _planned(bench, strategy, loss)
        try:
            _check_memory(made.plan, bench.settings.max_memory)
            _check_staleness(made.plan, strategy)
        except OptionError as error:  # forecasts of sizes are those of other cuts
            refused = error
            if tried < MOST_TRIED:
                continue
            break
        seconds, plain = made.plan.step_seconds, without_pipeline(asked, bench, total)
        if made.rehearsed and seconds is not None and plain is not None:
            alone = bench.whole(total, min(plain.accumulate, bench.samples))
            if alone <= seconds * (1.0 + CLOSE):
                made = _planned(bench, plain, loss)
                reason += f"; rehearsed, it took {seconds * 1e3:.1f} ms, and no pipeline takes {alone * 1e3:.1f} ms: "
                reason += "chosen was no pipeline"
        return replace(made, plan=replace(made.plan, notes=(*made.plan.notes, reason)))
    assert refused is not None  # there is a choice, or none that fits was an error
    plain = without_pipeline(asked, bench, total)
    if plain is None:
        raise refused
    made = _planned(bench, plain, loss)
    _check_memory(made.plan, bench.settings.max_memory)
    note = "chosen was no pipeline: those that were tried do not keep the bounds"
    return replace(made, plan=replace(made.plan, notes=(*made.plan.notes, note)))


def _planned(bench: Bench, strategy: Pipelined, loss: Loss, at: Sequence[int] | None = None) -> Planned:
    settings = bench.settings
    total = available_threads(settings)
    cuts = positions(strategy, bench.graph) if at is None else list(at)
    stages = len(cuts) + 1 if cuts is not None else number_of_stages(strategy)
    workers = _workers(strategy, stages)
    threads = max(1, total // workers)
    parts = kept_in = min(strategy.accumulate, bench.samples)
    if cuts is None or settings.forecast or settings.max_memory is not None:
        if cuts is None:
            profile = bench.profile(threads, parts)
            found = bench.balanced(stages, threads, parts, strategy.placement == "split")
        else:
            profile, kept_in = bench.profile(threads), 1
            found = bench.given(tuple(cuts), threads, parts)
        cuts = list(found.cuts)
        alone = bench.whole(threads) if parts > 1 else sum(bench.costs(threads))
        everyone = bench.whole(total) if workers > 1 else alone
        forecast = Forecast(profile, kept_in, found.times, alone, everyone, total)
    else:
        profile, forecast = None, None
    segments = split(bench.graph, cuts)
    plan = describe(strategy, bench.graph, cuts, segments, threads, bench.samples, forecast, bench.state_share)
    made = Planned(plan, bench.graph, segments, bench.inputs, strategy, profile, kept_in, tuple(cuts))
    if (seconds := rehearse(bench, made, loss)) is not None:
        plan = replace(plan, step_seconds=seconds)
        plan = replace(plan, advice=advice(plan))
    if parts < strategy.accumulate:
        note = f"batches of {parts} enter in {parts} micro-batches, and staleness and memory are stated for "
        note += f"{strategy.accumulate}: use larger batches, or accumulate={parts}"
        plan = replace(plan, notes=(*plan.notes, note))
    inexact = inexact_mean(loss) if strategy.accumulate > 1 else None
    if inexact is not None:
        note = f"with {inexact} the mean over micro-batches is not exactly the mean over the mini-batch"
        plan = replace(plan, notes=(*plan.notes, note))
    return replace(made, plan=plan, rehearsed=seconds is not None)


def _check_staleness(plan: PipelinePlan, strategy: Pipelined) -> None:
    """Refuse a plan whose weights are staler than the user allows."""
    stalest, limit = max(stage.staleness for stage in plan.stages), strategy.max_staleness
    if limit is None or stalest <= limit:
        return
    ways = []
    if strategy.slack:
        ways.append("drop slack")
    if strategy.clock == "registers" and strategy.placement == "colocated":
        ways.append("clock='1f1b' halves it")
    if plan.accumulate == 1:
        ways.append("accumulate=4 divides it by four")
    ways.append("stages='auto' chooses what fits" if strategy.placement == "colocated" else "use fewer stages")
    raise OptionError(
        f"this pipeline reads weights that are {age(stalest)}, and max_staleness is {limit:g}",
        hint="; ".join(ways),
    )


def keeps_memory(plan: PipelinePlan, limit: int | None) -> bool:
    """Whether weights, gradients, optimizer state and activations are within ``limit`` bytes."""
    return limit is None or _held(plan) <= limit


def _held(plan: PipelinePlan) -> int:
    return (plan.activation_bytes or 0) + plan.weights_held_bytes


def _check_memory(plan: PipelinePlan, limit: int | None) -> None:
    """Refuse a plan whose weights, gradients and activations do not fit."""
    need = _held(plan)
    if limit is None or keeps_memory(plan, limit):
        return
    sequential = (plan.sequential_activation_bytes or 0) + plan.sequential_weights_bytes
    ways = []
    if plan.accumulate == 1:
        ways.append("accumulate=4 holds a quarter of the activations")
    if plan.clock == "registers" and plan.placement == "colocated":
        ways.append("clock='1f1b' holds half as many activations beside those of one batch")
    raise OptionError(
        f"this pipeline holds {megabytes(need)} at its peak (sequential training {megabytes(sequential)}), and "
        f"max_memory is {megabytes(limit)}",
        hint="; ".join([*ways, "use a smaller batch"]),
    )


def _workers(strategy: Pipelined, stages: int) -> int:
    return 2 * stages - 1 if strategy.placement == "split" else stages
