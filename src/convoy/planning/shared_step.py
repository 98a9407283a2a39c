"""Forecasts of strategies that share one mini-batch among workers: tasks, CONV beside non-CONV, speculation.

Each builds the program that it would train with and rehearses it on copies of the weights; the modelled engine carries
out its schedule with the times of its actions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch

from convoy.engines.pool import PoolEngine
from convoy.engines.threads import ThreadsEngine
from convoy.errors import ConvoyError
from convoy.planning.comparison import Refused, Row, options_of
from convoy.planning.measures import Actions, activations, threads_for, weights
from convoy.strategies.base import Loss, Strategy
from convoy.strategies.batch import arguments
from convoy.strategies.concurrent import Concurrent
from convoy.strategies.concurrent.build import Grouped, grouped, plan_for
from convoy.strategies.concurrent.schedule import CONV, NONCONV
from convoy.strategies.pipelined.balance_bench import Bench
from convoy.strategies.sequential import Sequential
from convoy.strategies.speculative import Speculative
from convoy.strategies.speculative.acceptance import Selection
from convoy.strategies.speculative.build import ENGINES, Prepared, prepare, program
from convoy.strategies.speculative.frame import notes
from convoy.strategies.speculative.predictors import Zero
from convoy.strategies.speculative.step import check_labels
from convoy.strategies.tasks.build import build
from convoy.strategies.tasks.ops import Frame

ACCEPTED = 0.5
"""Share of the samples that is taken to keep what was speculated: what it is depends on data and weights."""
LAST_DIGITS = "plain training but for last digits"


def tasks(bench: Bench, loss: Loss, asked: Strategy | None = None) -> Iterator[Row | Refused]:
    """``Sequential(inner="tasks")``, unless the plain loop alone was asked for."""
    if isinstance(asked, Sequential) and asked.inner != "tasks":
        return
    actions, strategy = Actions(bench, loss), Sequential(inner="tasks")
    try:
        workers = threads_for(bench, "sharing a mini-batch")
        strategy.bind(actions.graph.program, loss, actions.optimizer, settings=bench.settings).close()
        bound = actions.bound(workers)
        tiles = bound.tiles_for(bench.samples)
        made = build(bound, tiles).program
    except ConvoyError as error:
        yield Refused(f"sequential {options_of(strategy)}", error.message)
        return
    lanes = {f"worker {i + 1}": 1 for i in range(workers)}
    found = actions.carried_out(made, lanes, PoolEngine)
    yield Row(
        "sequential", options_of(strategy), found.finish, found.shares, (activations(bench) + weights(bench),), 0.0,
        LAST_DIGITS if tiles > 1 else "plain training",
    )  # fmt: skip


def concurrent(bench: Bench, loss: Loss, asked: Strategy | None = None) -> Iterator[Row | Refused]:
    """By kind, as published, and planned; what the groups take is measured once for both."""
    variants = [asked] if isinstance(asked, Concurrent) else [Concurrent(), Concurrent(placement="kind")]
    threads = threads_for(bench, "work on two engines")
    actions = Actions(bench, loss)
    bound = actions.bound(ENGINES)
    lanes = {CONV: max(1, threads - threads // 2), NONCONV: max(1, threads // 2)}
    measured: dict[int, list[float]] = {}

    def timing(count: int, made: Grouped) -> list[float]:
        recurring = made.program.recurring
        if count not in measured:
            measured[count] = actions.seconds(made.program, lanes[CONV])
        return actions.whole(recurring, measured[count], lanes[CONV])

    built = cache(partial(grouped, bound))
    for strategy in variants:
        strategy.bind(actions.graph.program, loss, actions.optimizer, settings=bench.settings).close()
        x, y = bench.part(1)
        plan, made = plan_for(
            bound, x, y, count=strategy.groups, placement=strategy.placement, measuring=True, timing=timing,
            build=built, threads=(lanes[CONV], lanes[NONCONV]),
        )  # fmt: skip
        found = actions.carried_out(made, lanes, ThreadsEngine)
        by_kind = strategy.placement == "kind"
        bound_seconds = max(plan.chain_seconds, plan.balance_seconds if by_kind else plan.shared_seconds)
        reason = "the busier kind" if by_kind and bound_seconds == plan.balance_seconds else "no schedule is faster"
        yield Row(
            "concurrent", options_of(replace(strategy, groups=plan.groups)), found.finish, found.shares,
            (activations(bench) + weights(bench),), 0.0, "plain training" if plan.groups == 1 else LAST_DIGITS,
            note=f"bound {bound_seconds * 1e3:.1f} ms ({reason}, by its actions as timed one by one)",
        )  # fmt: skip


def speculative(bench: Bench, loss: Loss, asked: Strategy | None = None) -> Iterator[Row | Refused]:
    """The default and the published form, at an assumed acceptance."""
    variants = [asked] if isinstance(asked, Speculative) else [Speculative(), Speculative(predictor="label-last")]
    threads = threads_for(bench, "speculation")
    actions = Actions(bench, loss)
    each = max(1, threads // ENGINES)
    x, y = bench.part(1)
    for strategy in variants:
        options = f"--form {strategy.form}"
        if strategy.predictor != Speculative(form=strategy.form).predictor:
            options += f" --predictor {strategy.predictor}"
        usual = Speculative(form=strategy.form, predictor=strategy.predictor)  # whose threshold is that predictor's
        options = f"{options} {options_of(strategy, usual)}".rstrip()
        try:
            strategy.bind(actions.graph.program, loss, actions.optimizer, settings=bench.settings).close()
            check_labels(y, bench.samples)
            inputs = actions.graph.bind(*arguments(x))
            prepared = prepare(
                strategy, actions.graph, actions.graph.program, loss, actions.optimizer, bench.settings, None, inputs
            )
            made = program(accepting(prepared, ACCEPTED), "speculate")
        except ConvoyError as error:
            yield Refused(f"speculative {options}", error.message)
            continue
        lanes = {f"engine {i + 1}": each for i in range(ENGINES)}
        found = actions.carried_out(made, lanes, PoolEngine)
        guessed = prepared.speculated_share * ACCEPTED
        what = "left out" if strategy.choice.kind is Zero else "guessed"
        yield Row(
            "speculative", options, found.finish, found.shares,
            (activations(bench) + weights(bench) + prepared.memory_bytes,), 0.0,
            f"{guessed:.0%} of the backward {what}", exact=False, speculated=guessed,
            note=f"assumes that {ACCEPTED:.0%} of the samples are accepted; --threshold 0 is exact",
        )  # fmt: skip


def accepting(prepared: Prepared, share: float) -> Prepared:
    """The same, with a comparison that does its work and then accepts this share of every mini-batch."""
    compare = prepared.part.compare

    def forced(frame: Frame, tile: int, args: list[Any]) -> Sequence[Any]:
        (measured,) = compare(frame, tile, args)
        rejected = torch.arange(measured.samples) >= round(share * measured.samples)
        selection = Selection.of(rejected, measured.distance)
        notes(frame)["selection"] = selection
        return (selection,)

    return replace(prepared, part=replace(prepared.part, compare=forced))
