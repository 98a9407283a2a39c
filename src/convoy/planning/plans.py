"""``convoy.plan(model, batch, strategy, workers)``: what training would take, without training."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from convoy.errors import ConvoyError, ModelError, OptionError, hint_for
from convoy.planning.comparison import Comparison, Refused, Row, advise
from convoy.planning.forecasts import FORECASTS, OTHERS, Forecaster
from convoy.schedule.plan import Plan, megabytes
from convoy.strategies.base import Loss, Settings, Strategy
from convoy.strategies.batch import batch_size, channels_last, prepare_model, tensors, to_device
from convoy.strategies.pipelined import Pipelined
from convoy.strategies.pipelined.balance_bench import Bench
from convoy.strategies.pipelined.planner import available_threads, plan_on
from convoy.strategies.registry import STRATEGIES, make_strategy, strategy_class

HURRY = 0.24
"""For a comparison of all strategies, of the time that one plan takes to measure."""


def plan(
    model: nn.Module,
    batch: Any,
    strategy: Strategy | str | None = None,
    workers: int | None = None,
    *,
    loss: Loss | None = None,
    optimizer: Optimizer | None = None,
    settings: Settings | None = None,
) -> Plan:
    """What ``strategy`` would do with ``model``, measured and predicted on this machine; without one, a comparison of
    all strategies.

    ``batch``: a pair (x, y) as a loader yields it, or x alone (then the mean of the outputs stands for the loss).
    ``workers``: cores to plan for (default: as many as PyTorch would use). ``loss`` is the cross-entropy unless
    given, ``optimizer`` (whose kind says what an update costs) SGD with momentum. The model is copied and stays as it
    is. Takes 10 to 35 seconds, more where a step takes more than two.

    Returns a ``PipelinePlan`` for ``Pipelined``, else a ``Comparison``. Raises OptionError and ModelError for what
    cannot work, with ``Settings(max_memory=...)`` also for what does not fit.
    """
    if workers is not None and workers < 1:
        raise OptionError(f"workers is {workers}", hint="give the number of cores to plan for")
    chosen = make_strategy(strategy) if isinstance(strategy, str) else strategy
    settings = replace(settings or Settings(), forecast=True)
    if workers is not None:
        settings = replace(settings, threads=workers)
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"the model is a {type(model).__name__}", hint="give an nn.Module; convoy.models.build makes one"
        )
    x, y, loss = _batch(batch, loss)
    try:
        return _planned(model, x, y, loss, chosen, settings, optimizer)
    except IndexError as error:
        hint = hint_for(error)
        if hint is None:
            raise
        raise ModelError(f"the loss cannot be computed: {error}".rstrip("."), hint=hint) from error


def _planned(
    model: nn.Module, x: Any, y: Any, loss: Loss, chosen: Strategy | None, settings: Settings,
    optimizer: Optimizer | None,
) -> Plan:  # fmt: skip
    if batch_size(x) < 1:
        raise OptionError("the batch has no samples", hint="give one as large as in training")
    if isinstance(chosen, Pipelined):
        return plan_on(_bench(model, x, y, loss, settings, optimizer, 1.0), chosen, loss).plan
    limit = settings.max_memory  # holds for each possibility, not for all of them
    bench = _bench(model, x, y, loss, replace(settings, max_memory=None), optimizer, HURRY)
    return compare(bench, loss, chosen, limit)


def compare(bench: Bench, loss: Loss, strategy: Strategy | None = None, limit: int | None = None) -> Comparison:
    """All strategies (or the one given, beside sequential training), fastest first; those that cannot be planned, or
    hold more than ``limit`` bytes, with the reason."""
    rows: list[Row] = []
    refused: list[Refused] = []
    names = list(STRATEGIES) if strategy is None else list(dict.fromkeys(["sequential", strategy.name]))
    for name in names:
        forecasts = _forecasters(name)
        if not forecasts:
            refused.append(Refused(name, "there is no forecast for it yet; compare it by training"))
        for forecast in forecasts:
            asked = strategy if strategy is not None and strategy.name == name else None
            try:
                made = list(forecast(bench, loss, asked))
            except ConvoyError as error:
                refused.append(Refused(name, error.message))
                continue
            for one in made:
                if isinstance(one, Row) and limit is not None and one.bytes > limit:
                    too_big = f"it holds {megabytes(one.bytes)}, and max_memory is {megabytes(limit)}"
                    one = Refused(f"{name} {one.options}".rstrip(), too_big)
                (rows if isinstance(one, Row) else refused).append(one)  # type: ignore[arg-type]
    if strategy is None:
        rows += [row for other in OTHERS for row in other(bench, loss, None) if isinstance(row, Row)]
    if not rows:
        raise OptionError(f"nothing can be planned: {refused[0].name}: {refused[0].reason}", hint="use a smaller batch")
    rows.sort(key=lambda row: row.step_seconds)
    threads = available_threads(bench.settings)
    best = min(bench.whole(threads), bench.whole(1))
    return Comparison(
        model=bench.graph.model_name,
        batch_size=bench.samples,
        workers=threads,
        sequential_seconds=best,
        one_worker_seconds=bench.whole(1),
        rows=tuple(rows),
        refused=tuple(refused),
        advice=advise(rows, best),
    )


def _forecasters(name: str) -> Sequence[Forecaster]:
    own: Forecaster | None = getattr(strategy_class(name), "forecast", None)
    return FORECASTS.get(name) or (() if own is None else (own,))


def _batch(batch: Any, loss: Loss | None) -> tuple[Any, Any, Loss]:
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        x, y = batch
    elif isinstance(batch, Mapping):
        x, y = batch, batch
    else:
        x, y = batch, None
    if loss is None:
        loss = mean_of_outputs if y is None or isinstance(y, Mapping) else nn.functional.cross_entropy
    return x, y, loss


def mean_of_outputs(output: Any, target: Any) -> Tensor:
    """Stands for a loss that was not given: its gradient reaches all that the model returns."""
    return torch.stack([t.float().mean() for t in tensors(output) if t.is_floating_point()]).sum()


def _bench(
    model: nn.Module, x: Any, y: Any, loss: Loss, settings: Settings, optimizer: Optimizer | None, hurry: float
) -> Bench:
    try:
        copied = copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise ModelError(
            f"{type(model).__name__} cannot be copied: {error}",
            hint="keep tensors that were computed out of its attributes",
        ) from error
    parameters = [p for p in copied.parameters() if p.requires_grad]
    if not parameters:
        raise ModelError(f"{type(model).__name__} has no weights to train", hint="check what it freezes")
    prepare_model(copied, SGD(parameters, lr=0.1), settings.device, settings.channels_last)
    x, y = to_device(x, settings.device), to_device(y, settings.device)
    if not copied.training:  # otherwise single layers may be in eval mode on purpose
        copied.train()
    return Bench(copied, loss, channels_last(x) if settings.channels_last else x, y, settings, optimizer, hurry)
