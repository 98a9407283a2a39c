"""``stages="auto"``: how many stages, which clock and how many micro-batches, from a forecast of every possibility.

What decides is the time of a step; among possibilities within 3 % of the fastest, the one with the least stale weights.
A possibility's time follows from the profile's costs by an optimal partition, from how micro-batches run on this
machine, and from walking its schedule; only the winner's stages are then run side by side. No pipeline at all (one
stage on all threads) is one of the possibilities. Where weights are stale and the optimizer is SGD with momentum, the
recommended correction comes with it, unless the user named one, or "none".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import log
from typing import TYPE_CHECKING

import torch

from convoy.engines.driver import callers_threads
from convoy.errors import OptionError
from convoy.schedule.plan import megabytes
from convoy.strategies.pipelined.balance import Places
from convoy.strategies.pipelined.clock import age, delays, staleness_in_updates
from convoy.strategies.pipelined.corrections import RECOMMENDED, Corrections, without_plain_momentum
from convoy.strategies.pipelined.describe import kept_bytes
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


def choices(strategy: Pipelined, bench: Bench, threads: int) -> Iterator[tuple[Pipelined, str]]:
    """``strategy`` with what was open filled in, and a sentence that says why: the best possibility first, then what
    to take where its plan turns out not to fit.

    What the user gave (a clock, ``accumulate``, a correction) stays. Raises OptionError when nothing keeps both
    ``max_staleness`` and ``max_memory``; one stage always keeps the former.
    """
    made = list(possibilities(strategy, bench, threads))
    if strategy.slack and len(made) == 1:
        raise OptionError(
            f"slack is {strategy.slack}, and no pipeline that can be chosen here has so many cuts",
            hint="give a number from 0 to the number of cuts",
        )
    correction = strategy.correction or (RECOMMENDED if suits_momentum(bench) else None)
    small = [p for p in made if _is_small(p, bench, correction)]
    allowed = [p for p in small if _is_fresh(p, strategy)]
    if not allowed:
        raise _nothing_fits(made, small, strategy, bench, correction)
    left_out = len(made) - len(allowed)
    while allowed:
        fastest = min(p.seconds for p in allowed)
        close = [p for p in allowed if p.seconds <= fastest * (1.0 + CLOSE)]
        best = min(close, key=lambda p: (p.staleness, p.seconds))
        allowed.remove(best)
        taken = correction if best.staleness else strategy.correction
        how = f"{best}, correction {taken}" if taken and taken != strategy.correction else str(best)
        reason = f"chosen from {len(made)} possibilities: {how}, forecast {best.seconds * 1e3:.1f} ms a step"
        if left_out:
            reason += f" ({left_out} too stale or too large)"
        slack = strategy.slack if best.stages > 1 else 0
        chosen = replace(
            strategy, stages=best.stages, clock=best.clock, slack=slack, accumulate=best.accumulate, correction=taken
        )
        yield chosen, reason
        left_out += 1


def without_pipeline(strategy: Pipelined, bench: Bench, threads: int) -> Pipelined | None:
    """``strategy`` with one stage, which is plain training but for micro-batches that the user asked for; None where
    that does not keep ``max_memory``."""
    plain = next(possibilities(strategy, bench, threads))
    if not _is_small(plain, bench, None):
        return None
    return replace(strategy, stages=1, clock=plain.clock, slack=0, accumulate=plain.accumulate)


def possibilities(strategy: Pipelined, bench: Bench, threads: int) -> Iterator[Possibility]:
    """All that may be chosen, with their forecasts; no pipeline first."""
    whole, last = bench.graph, len(bench.graph.nodes)
    profile, given = bench.profile(1), strategy.accumulate or 1
    kept = kept_bytes(profile, whole, 0, last) // given
    yield Possibility(1, strategy.clock or "registers", given, bench.whole(threads, given), 0.0, kept)
    alone = bench.whole(1)
    for parts in _parts(strategy, bench.samples):
        factor = CONTENTION * bench.whole(1, parts) / alone
        for stages in range(max(2, strategy.slack + 1), min(threads, MOST_STAGES) + 1):  # slack is at most K
            places = Places.of(whole, stages, False)
            if stages > len(places.allowed) + 1:
                break
            gain = _gain(bench, threads, max(1, threads // stages))
            costs = [cost * factor / gain for cost in bench.costs(1)]
            cuts = places.best(costs)
            bounds = [0, *cuts, len(costs)]
            times = [sum(costs[a:b]) for a, b in pairwise(bounds)]
            kept_by = [kept_bytes(profile, whole, a, b) for a, b in pairwise(bounds)]
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
    return settings.threads or callers_threads()


def _clocks(strategy: Pipelined) -> tuple[str, ...]:
    if strategy.clock:
        return (strategy.clock,)
    return CLOCKS


def _parts(strategy: Pipelined, samples: int) -> tuple[int, ...]:
    if strategy.accumulate:
        return (strategy.accumulate,)
    if strategy.correction == "dc-asgd":
        return (1,)
    return tuple(m for m in ACCUMULATE if m == 1 or samples >= 4 * m)


def suits_momentum(bench: Bench) -> bool:
    """Whether corrections made of SGD's momentum apply to the optimizer; where none is given, that is what is meant."""
    return bench.optimizer is None or not without_plain_momentum(bench.optimizer)


def _weights_held(p: Possibility, bench: Bench, correction: str | None) -> int:
    """Bytes of weights, gradients and optimizer state, and at most of what the correction holds besides."""
    copies = Corrections.parse(correction).copies(p.staleness)
    return bench.weights_bytes + round(copies * sum(bench.graph.parameter_bytes.values()))


def _is_small(p: Possibility, bench: Bench, correction: str | None) -> bool:
    limit = bench.settings.max_memory
    return limit is None or p.activation_bytes + _weights_held(p, bench, correction) <= limit


def _is_fresh(p: Possibility, strategy: Pipelined) -> bool:
    return strategy.max_staleness is None or p.staleness <= strategy.max_staleness


def _nothing_fits(
    made: Sequence[Possibility], small: Sequence[Possibility], strategy: Pipelined, bench: Bench, correction: str | None
) -> OptionError:
    limit = megabytes(bench.settings.max_memory or 0)
    if small:
        freshest = min(p.staleness for p in small)
        return OptionError(
            f"what holds no more than max_memory, {limit}, reads weights at least {age(freshest)}, and "
            f"max_staleness is {strategy.max_staleness:g}",
            hint="raise one of the two, or use a smaller batch",
        )
    least = min(p.activation_bytes + _weights_held(p, bench, correction) for p in made)
    return OptionError(
        f"max_memory is {limit}, and the least that any possibility holds is {megabytes(least)}",
        hint="raise it, or use a smaller batch",
    )
