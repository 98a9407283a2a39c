"""``stages="auto"``: how many stages, which clock and how many micro-batches, from a forecast of every possibility.

What decides is the time of a step; among possibilities within 3 % of the fastest, the one with the least stale weights.
A possibility's time follows from the profile's costs by an optimal partition, from how micro-batches run on this
machine, and from walking its schedule; only the winner's stages are then run side by side. No pipeline at all (one
stage on all threads) is one of the possibilities.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from math import log
from typing import TYPE_CHECKING

import torch

from convoy.errors import OptionError
from convoy.strategies.pipelined.balance import Places
from convoy.strategies.pipelined.clock import delays, staleness_in_updates
from convoy.strategies.pipelined.plan import steady_step

if TYPE_CHECKING:
    from convoy.strategies.base import Settings
    from convoy.strategies.pipelined.balance_bench import Bench
    from convoy.strategies.pipelined.strategy import Pipelined

CLOCKS = ("1f1b", "registers")
ACCUMULATE = (1, 2, 4, 8)
CLOSE = 0.03
"""Forecasts do not tell possibilities apart that are closer than this."""
MOST_STAGES = 8
CONTENTION = 1.05
"""What stages take beside others over what they take alone, before any ran: from measurements on two cores."""
JITTER = 0.04


@dataclass(frozen=True, slots=True)
class Possibility:
    """One way to train; ``staleness`` of the first stage in updates, ``activation_bytes`` held at once."""

    stages: int
    clock: str
    accumulate: int
    seconds: float
    staleness: float
    activation_bytes: int

    def __str__(self) -> str:
        if self.stages == 1:
            return "no pipeline"
        parts = f", {self.accumulate} micro-batches" if self.accumulate > 1 else ""
        return f"{self.stages} stages, clock {self.clock}{parts}"


def choose(strategy: Pipelined, bench: Bench, threads: int) -> tuple[Pipelined, str]:
    """``strategy`` with what was open filled in, and a sentence that says why.

    What the user gave (a clock other than the default, ``accumulate`` above 1) stays. Raises OptionError when nothing
    keeps ``max_staleness`` and ``max_memory``; one stage always keeps the former.
    """
    made = list(possibilities(strategy, bench, threads))
    allowed = [p for p in made if _fits(p, strategy, bench)]
    if not allowed:
        least = min(p.activation_bytes for p in made) + 3 * _weight_bytes(bench)
        raise OptionError(
            f"max_memory is {bench.settings.max_memory:,} bytes, and the least that any possibility holds is {least:,}",
            hint="raise it, or use a smaller batch",
        )
    fastest = min(p.seconds for p in allowed)
    close = [p for p in allowed if p.seconds <= fastest * (1.0 + CLOSE)]
    best = min(close, key=lambda p: (p.staleness, p.seconds))
    left_out = len(made) - len(allowed)
    reason = f"chosen from {len(made)} possibilities: {best}, forecast {best.seconds * 1e3:.1f} ms a step"
    if left_out:
        reason += f" ({left_out} too stale or too large)"
    chosen = replace(strategy, stages=best.stages, clock=best.clock, accumulate=best.accumulate)
    return chosen, reason


def possibilities(strategy: Pipelined, bench: Bench, threads: int) -> Iterator[Possibility]:
    """All that may be chosen, with their forecasts."""
    whole = bench.graph
    kept = bench.profile(1).saved_bytes(0, len(whole.nodes))
    yield Possibility(1, strategy.clock, strategy.accumulate, bench.whole(threads), 0.0, kept)
    alone = bench.whole(1)
    for parts in _parts(strategy, bench.samples):
        factor = CONTENTION * bench.whole(1, parts) / alone
        for stages in range(2, min(threads, MOST_STAGES) + 1):
            places = Places.of(whole, stages, False)
            if stages > len(places.allowed) + 1:
                break
            gain = _gain(bench, threads, max(1, threads // stages))
            costs = [cost * factor / gain for cost in bench.costs(1)]
            cuts = places.best(costs)
            bounds = [0, *cuts, len(costs)]
            times = [sum(costs[a:b]) for a, b in pairwise(bounds)]
            kept_by = [bench.profile(1).saved_bytes(a, b) for a, b in pairwise(bounds)]
            for clock in _clocks(strategy):
                behind = delays(stages, clock, strategy.slack if clock == "1f1b" else 0)
                step, _ = steady_step(behind, [(t / 3, t * 2 / 3) for t in times], parts, jitter=JITTER)
                held = sum((d + 1) * a / parts for d, a in zip(behind, kept_by, strict=True))
                stale = max(staleness_in_updates(behind, parts))
                yield Possibility(stages, clock, parts, step, stale, round(held))


def _gain(bench: Bench, most: int, threads: int) -> float:
    """How many times faster ``threads`` threads are than one, as a power between one and what ``most`` of them gain."""
    if threads == 1:
        return 1.0
    return float(max(bench.whole(1) / bench.whole(most), 1.0) ** (log(threads) / log(most)))


def workers_at_hand(settings: Settings) -> int:
    """How many stages can work at once: devices where there are any, else threads."""
    if torch.device(settings.device).type == "cuda":
        return torch.cuda.device_count()
    return settings.threads or torch.get_num_threads()


def _clocks(strategy: Pipelined) -> tuple[str, ...]:
    return CLOCKS if strategy.clock == "registers" else (strategy.clock,)


def _parts(strategy: Pipelined, samples: int) -> tuple[int, ...]:
    if strategy.accumulate > 1:
        return (strategy.accumulate,)
    if strategy.correction == "dc-asgd":
        return (1,)
    return tuple(m for m in ACCUMULATE if m == 1 or samples >= 4 * m)


def _weight_bytes(bench: Bench) -> int:
    return sum(bench.graph.parameter_bytes.values())


def _fits(p: Possibility, strategy: Pipelined, bench: Bench) -> bool:
    limit = bench.settings.max_memory
    if limit is not None and p.activation_bytes + 3 * _weight_bytes(bench) > limit:
        return False
    return strategy.max_staleness is None or p.staleness <= strategy.max_staleness
