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
from convoy.strategies.pipelined.auto import CLOSE, choose, workers_at_hand
from convoy.strategies.pipelined.balance_bench import Bench
from convoy.strategies.pipelined.describe import Forecast, advice, describe
from convoy.strategies.pipelined.loss import inexact_mean
from convoy.strategies.pipelined.plan import PipelinePlan
from convoy.strategies.pipelined.planned import Planned, number_of_stages, positions
from convoy.strategies.pipelined.rehearsal import rehearse

if TYPE_CHECKING:
    from convoy.strategies.pipelined.strategy import Pipelined


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
    settings, reason = bench.settings, None
    total = available_threads(settings)
    if strategy.stages == "auto":
        strategy, reason = choose(strategy, bench, workers_at_hand(settings))
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
    plan = describe(strategy, bench.graph, cuts, segments, threads, bench.samples, forecast)
    made = Planned(plan, bench.graph, segments, bench.inputs, strategy, profile, kept_in, tuple(cuts))
    if (seconds := rehearse(bench, made, loss)) is not None:
        plan = replace(plan, step_seconds=seconds)
        plan = replace(plan, advice=advice(plan))
        if reason is not None and bench.whole(total) <= seconds * (1.0 + CLOSE):
            told = f"{reason}; rehearsed, it took {seconds * 1e3:.1f} ms, and no pipeline takes "
            without = plan_on(bench, replace(strategy, stages=1), loss)
            note = f"{told}{bench.whole(total) * 1e3:.1f} ms: chosen was no pipeline"
            return replace(without, plan=replace(without.plan, notes=(*without.plan.notes, note)))
    inexact = inexact_mean(loss) if strategy.accumulate > 1 else None
    if inexact is not None:
        note = f"with {inexact} the mean over micro-batches is not exactly the mean over the mini-batch"
        plan = replace(plan, notes=(*plan.notes, note))
    if reason is not None:
        plan = replace(plan, notes=(*plan.notes, reason))
    if settings.max_memory is not None:
        _check_memory(plan, settings.max_memory)
    _check_staleness(plan, strategy.max_staleness)
    return replace(made, plan=plan)


def _check_staleness(plan: PipelinePlan, limit: float | None) -> None:
    """Refuse a plan whose weights are staler than the user allows."""
    stalest = max(stage.staleness for stage in plan.stages)
    if limit is None or stalest <= limit:
        return
    hint = "clock='1f1b' halves it" if plan.clock == "registers" else "accumulate=4 divides it by four"
    raise OptionError(
        f"this pipeline reads weights that are {stalest:g} updates old, and max_staleness is {limit:g}",
        hint=f"{hint}; stages='auto' chooses what fits",
    )


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
