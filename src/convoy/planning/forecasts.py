"""What each strategy should take for a mini-batch, from measurements of the model alone.

``FORECASTS`` maps a strategy's name to a function of a bench that yields its variants. A strategy without an entry may
offer a class method ``forecast(bench, loss)`` that does; one with neither is listed as not yet planned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import takewhile

from convoy.errors import OptionError
from convoy.graph.machine import measure_machine
from convoy.planning.comparison import Row
from convoy.strategies.base import Loss
from convoy.strategies.pipelined import Pipelined
from convoy.strategies.pipelined.auto import CONTENTION, possibilities, workers_at_hand
from convoy.strategies.pipelined.balance_bench import Bench
from convoy.strategies.pipelined.plan import PipelinePlan
from convoy.strategies.pipelined.planner import available_threads, plan_on

COPIES = 8
"""How often Gloo touches a byte of a gradient on its way through the loopback: buckets, sockets, sums, both sides."""


def sequential(bench: Bench, loss: Loss) -> Iterator[Row]:
    threads = available_threads(bench.settings)
    held = activations(bench) + weights(bench)  # first: what the profile knows need not be measured again
    seconds, alone = bench.whole(threads), bench.whole(1)
    own = f"--threads {threads}" if threads > 1 else ""
    yield Row("sequential", own, seconds, (min(1.0, alone / seconds / threads),), (held,), 0.0, "plain training")
    if alone < seconds:  # small networks, or another program on one of the cores
        yield Row("sequential", "--threads 1", alone, (1.0,), (held,), 0.0, "plain training")


def pipelined(bench: Bench, loss: Loss) -> Iterator[Row]:
    norms = has_batch_norm(bench)
    yield from (pipeline_row(plan, options, norms) for plan, options in pipelines(bench, loss))


def pipelines(bench: Bench, loss: Loss) -> Iterator[tuple[PipelinePlan, str]]:
    """The plans of a pipeline with as many stages as should be fastest, and how to ask for them."""
    stages, threads = stages_and_threads(bench)
    for clock, accumulate in (("registers", 1), ("1f1b", 1), ("1f1b", 4)):
        if accumulate > bench.samples:
            continue
        cuts = bench.balanced(stages, threads).cuts  # the same for all variants, looked for once
        made = plan_on(bench, Pipelined(stages=stages, clock=clock, accumulate=accumulate), loss, cuts)
        options = f"--stages {stages}" + (f" --clock {clock}" if clock != "registers" else "")
        yield made.plan, options + (f" --accumulate {accumulate}" if accumulate > 1 else "")


def stages_and_threads(bench: Bench) -> tuple[int, int]:
    """Stages of the pipeline to plan for, and threads of each worker. Raises OptionError where there can be none."""
    workers = workers_at_hand(bench.settings)
    if workers < 2:
        what = "devices" if bench.settings.device.startswith("cuda") else "cores"
        raise OptionError(f"a pipeline needs two {what} or more, and there is one")
    whole = takewhile(lambda p: p.accumulate == 1, possibilities(Pipelined(), bench, workers))  # measures as it goes
    found = [p for p in whole if p.stages > 1 and p.clock == "registers"]
    if not found:
        raise OptionError(f"{bench.graph.model_name} cannot be cut anywhere")
    stages = min(found, key=lambda p: p.seconds).stages
    return stages, max(1, available_threads(bench.settings) // stages)


def pipeline_row(plan: PipelinePlan, options: str, norms: bool) -> Row:
    """``norms``: whether the model has BatchNorm layers, which see micro-batches."""
    assert plan.step_seconds is not None
    step = plan.step_seconds
    busy = tuple(min(1.0, (stage.seconds or 0.0) / step) for stage in plan.stages)
    held = tuple(
        (plan.held_bytes(stage) or 0) + 3 * stage.weight_bytes + stage.extra_weight_bytes for stage in plan.stages
    )
    stale = max(stage.staleness for stage in plan.stages)
    parts = f", BatchNorm sees 1/{plan.accumulate}" if plan.accumulate > 1 and norms else ""
    return Row("pipelined", options, step, busy, held, stale, f"{plan.stale_share:.0%} of weights stale{parts}")


def hybrid(bench: Bench, loss: Loss) -> Iterator[Row]:
    """Half of the run as the first pipeline, half sequentially, as published."""
    plan, options = next(pipelines(bench, loss))
    first, then = (
        pipeline_row(plan, options, has_batch_norm(bench)),
        min(sequential(bench, loss), key=lambda row: row.step_seconds),
    )
    step = (first.step_seconds + then.step_seconds) / 2
    yield replace(
        first, name="hybrid", options=f"--switch 0.5 {options}", step_seconds=step,
        same_numbers="stale weights in the first half",
    )  # fmt: skip


def ddp(bench: Bench, loss: Loss) -> Iterator[Row]:
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
    yield Row(
        "DDP", "(torchrun)", seconds, busy, (held,) * workers, 0.0,
        f"BatchNorm sees 1/{workers}" if has_batch_norm(bench) else "plain training", own=False,
    )  # fmt: skip


def contention(bench: Bench) -> float:
    """How much slower the cores are together than one is alone, as the stages showed."""
    try:
        stages, threads = stages_and_threads(bench)
    except OptionError:  # it cannot be cut
        return CONTENTION
    together = sum(stage.seconds for stage in bench.balanced(stages, threads).times)
    return max(1.0, together / bench.whole(threads))


def has_batch_norm(bench: Bench) -> bool:
    return any(node.kind == "batch_norm" for node in bench.graph.nodes)


def activations(bench: Bench) -> int:
    return bench.profile(1).saved_bytes(0, len(bench.graph.nodes))


def weights(bench: Bench) -> int:
    """Weights, gradients and momentum."""
    return 3 * sum(bench.graph.parameter_bytes.values())


Forecaster = Callable[[Bench, Loss], Iterable[Row]]

FORECASTS: dict[str, Forecaster] = {"sequential": sequential, "pipelined": pipelined, "hybrid": hybrid}
OTHERS: tuple[Forecaster, ...] = (ddp,)
"""Ways that are not convoy's, for honest advice."""
