"""What each strategy should take for a mini-batch, from measurements of the model alone.

``FORECASTS`` maps a strategy's name to functions of a bench that yield its variants, or of the one that was asked for,
and what cannot be, with the reason. A strategy without an entry may offer a static method ``forecast(bench, loss,
asked)`` that does; one with neither is listed as not yet planned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from convoy.errors import OptionError
from convoy.graph.machine import measure_machine
from convoy.planning.comparison import Refused, Row, options_of
from convoy.planning.measures import activations, contention, has_batch_norm, stages_and_threads, weights
from convoy.planning.replicas import bilayered
from convoy.planning.shared_step import concurrent, speculative, tasks
from convoy.strategies.base import Loss, Strategy
from convoy.strategies.hybrid import Hybrid
from convoy.strategies.pipelined import Pipelined
from convoy.strategies.pipelined.auto import suits_momentum, workers_at_hand
from convoy.strategies.pipelined.balance_bench import Bench
from convoy.strategies.pipelined.corrections import RECOMMENDED
from convoy.strategies.pipelined.plan import PipelinePlan
from convoy.strategies.pipelined.planner import available_threads, plan_on
from convoy.strategies.sequential import Sequential
from convoy.strategies.switching import SwitchRule

COPIES = 40
"""How often Gloo touches a byte of a gradient on its way through the loopback, on cores that compute besides: buckets,
sockets, sums, both sides, waiting for each other. About the middle of what AlexNet (26, 50) and VGG-16 (2, 107) took at
batch 32 on two cores on two days, by ``benchmarks/prediction``: no constant is good here."""


def sequential(bench: Bench, loss: Loss, asked: Strategy | None = None) -> Iterator[Row]:
    threads = available_threads(bench.settings)
    held = activations(bench) + weights(bench)  # first: what the profile knows need not be measured again
    seconds, alone = bench.whole(threads), bench.whole(1)
    own = f"--threads {threads}" if threads > 1 else ""
    yield Row("sequential", own, seconds, (min(1.0, alone / seconds / threads),), (held,), 0.0, "plain training")
    if alone < seconds:  # small networks, or another program on one of the cores
        yield Row("sequential", "--threads 1", alone, (1.0,), (held,), 0.0, "plain training")


def pipelined(bench: Bench, loss: Loss, asked: Strategy | None = None) -> Iterator[Row]:
    norms = has_batch_norm(bench)
    if isinstance(asked, Pipelined):
        yield pipeline_row(plan_on(bench, asked, loss).plan, options_of(asked), norms)
        return
    yield from (pipeline_row(plan, options, norms) for plan, options in pipelines(bench, loss))


def pipelines(bench: Bench, loss: Loss) -> Iterator[tuple[PipelinePlan, str]]:
    """The plans of a pipeline with as many stages as should be fastest, and how to ask for them."""
    stages, threads = stages_and_threads(bench)
    correction = RECOMMENDED if suits_momentum(bench) else None
    for clock, accumulate in (("registers", 1), ("1f1b", 1), ("1f1b", 4)):
        if accumulate > bench.samples:
            continue
        cuts = bench.balanced(stages, threads).cuts  # the same for all variants, looked for once
        asked = Pipelined(
            stages=stages, clock=clock, accumulate=accumulate, correction=correction if accumulate > 1 else None
        )
        yield plan_on(bench, asked, loss, cuts).plan, options_of(asked)


def pipeline_row(plan: PipelinePlan, options: str, norms: bool) -> Row:
    """``norms``: whether the model has BatchNorm layers, which see micro-batches."""
    assert plan.step_seconds is not None
    step = plan.step_seconds
    busy = tuple(min(1.0, (stage.seconds or 0.0) / step) for stage in plan.stages)
    held = tuple(
        (plan.held_bytes(stage) or 0) + stage.weight_bytes + stage.training_bytes + stage.extra_weight_bytes
        for stage in plan.stages
    )
    stale = max(stage.staleness for stage in plan.stages)
    parts = f", BatchNorm sees 1/{plan.accumulate}" if plan.accumulate > 1 and norms else ""
    numbers = f"{plan.stale_share:.0%} of weights stale{parts}"
    note = f"cut before {', '.join(plan.cuts)}" if plan.cuts else ""
    return Row("pipelined", options, step, busy, held, stale, numbers, exact=stale == 0 and not parts, note=note)


def hybrid(bench: Bench, loss: Loss, asked: Strategy | None = None) -> Iterator[Row]:
    """Half of the run as the first pipeline, half sequentially, as published; or what was asked for."""
    if isinstance(asked, Hybrid):
        first, then = (_fastest(bench, loss, part) for part in (asked.first, asked.then))
        share, known = _share(asked.switch)
        names = [
            f"--{which} {part.name}"
            for which, part, usual in (("first", asked.first, "pipelined"), ("then", asked.then, "sequential"))
            if part.name != usual
        ]
        options = " ".join(
            [*names, f"--switch {asked.switch}", *filter(None, map(options_of, (asked.first, asked.then)))]
        )
    else:
        plan, of_first = next(pipelines(bench, loss))
        first = pipeline_row(plan, of_first, has_batch_norm(bench))
        then, share, known = _fastest(bench, loss, Sequential()), 0.5, True
        options = f"--switch 0.5 {of_first}"
    step = share * first.step_seconds + (1.0 - share) * then.step_seconds
    numbers = [f"{row.same_numbers} {when}" for row, when in ((first, "first"), (then, "then")) if not row.exact]
    largest = max(first, then, key=lambda row: row.bytes)  # one of them at a time
    yield replace(
        first, name="hybrid", options=options, step_seconds=step, exact=first.exact and then.exact,
        worker_bytes=largest.worker_bytes,
        staleness=max(first.staleness, then.staleness), same_numbers=", ".join(numbers) or "plain training",
        note=first.note if known else "its switch is taken to come at half of the run",
    )  # fmt: skip


def _fastest(bench: Bench, loss: Loss, part: Strategy) -> Row:
    """The forecast of a part of a hybrid. Raises OptionError where it has none."""
    forecasts = FORECASTS.get(part.name, ())
    if isinstance(part, Sequential):
        forecasts = (tasks,) if part.inner == "tasks" else (sequential,)
    made = [made for forecast in forecasts for made in forecast(bench, loss, part)]
    rows = [row for row in made if isinstance(row, Row)]
    if not rows:
        raise OptionError(made[0].reason if made and isinstance(made[0], Refused) else f"{part.name} has no forecast")
    return min(rows, key=lambda row: row.step_seconds)


def _share(switch: int | float | str) -> tuple[float, bool]:
    """The share of the run before the switch, and whether it is known before."""
    rule = SwitchRule.parse(switch)
    return (float(rule.number), True) if rule.kind == "share" else (0.5, False)


def ddp(bench: Bench, loss: Loss, asked: Strategy | None = None) -> Iterator[Row]:
    """DistributedDataParallel, a process a core, each with its share of the batch; not one of convoy's strategies.

    Its time: a core's share of the batch beside the others, the gradients' way through the loopback (a ring sends
    2 (n - 1) / n of them), and the whole update in every process. On a CPU the sending takes the same cores.
    """
    workers = workers_at_hand(bench.settings)
    if workers < 2 or bench.samples < workers or bench.settings.device != "cpu":
        return
    update = bench.update(1)
    compute = (bench.whole(1, workers) - update) / workers * contention(bench)
    gradients = sum(p.nbytes for p in bench.graph.parameters.values() if p.requires_grad)
    sent = 2 * (workers - 1) / workers * gradients
    seconds = compute + update + sent * COPIES / measure_machine().bytes_per_second
    held = activations(bench) // workers + weights(bench) + gradients  # buckets hold the gradients once more
    busy = (min(1.0, (compute + update) / seconds),) * workers
    norms = has_batch_norm(bench)
    yield Row(
        "DDP", "(torchrun)", seconds, busy, (held,) * workers, 0.0,
        f"BatchNorm sees 1/{workers}" if norms else "plain training", own=False, exact=not norms,
    )  # fmt: skip


Forecaster = Callable[[Bench, Loss, Strategy | None], Iterable[Row | Refused]]

FORECASTS: dict[str, tuple[Forecaster, ...]] = {
    "sequential": (sequential, tasks),
    "pipelined": (pipelined,),
    "hybrid": (hybrid,),
    "speculative": (speculative,),
    "concurrent": (concurrent,),
    "bilayered": (bilayered,),
}
OTHERS: tuple[Forecaster, ...] = (ddp,)
"""Ways that are not convoy's, for honest advice."""
