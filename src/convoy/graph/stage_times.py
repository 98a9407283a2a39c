"""Times whole stages of several candidate partitions against each other."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np

from convoy.errors import OptionError
from convoy.graph.profile import relative_spread
from convoy.graph.timed_pass import intra_op_threads

Stage: TypeAlias = tuple[Callable[[], Any], Callable[[Any], object]]
"""(forward, backward) of one stage for one batch: ``backward`` is given what ``forward`` returned."""


@dataclass(frozen=True, slots=True)
class StageTime:
    """Medians for one batch; ``spread`` is the interquartile range of forward plus backward over its median."""

    forward_seconds: float
    backward_seconds: float
    spread: float

    @property
    def seconds(self) -> float:
        return self.forward_seconds + self.backward_seconds


Round: TypeAlias = tuple[tuple[float, float], ...]
"""(forward, backward) seconds of every stage of one candidate, in one round."""


def stage_seconds(
    candidates: Sequence[Sequence[Stage]],
    *,
    repeats: int = 5,
    budget_seconds: float = 10.0,
    threads: int = 1,
    together: bool = False,
) -> tuple[tuple[StageTime, ...], ...]:
    """Times of every stage of every candidate, in the order given; ``stage_rounds`` with each stage's medians."""
    found = stage_rounds(candidates, repeats=repeats, budget_seconds=budget_seconds, threads=threads, together=together)
    return tuple(tuple(map(_summary, zip(*rounds, strict=True))) for rounds in found)


def stage_rounds(
    candidates: Sequence[Sequence[Stage]],
    *,
    repeats: int = 5,
    budget_seconds: float = 10.0,
    threads: int = 1,
    together: bool = False,
) -> tuple[tuple[Round, ...], ...]:
    """What every stage of every candidate took, round by round.

    In each round every stage of every candidate runs once, candidates in rotating order, so that a disturbance meets
    all alike; one round warms up and does not count. A further round begins only if it should end within
    ``budget_seconds``; two always run. ``together``: the stages of a candidate run at the same time, each in a thread
    of its own with ``threads`` intra-op threads, so that they slow each other down as in a pipeline.
    """
    for name, value in (("repeats", repeats), ("threads", threads)):
        if value < 1:
            raise OptionError(f"{name} is {value}", hint="give a number from 1 up")
    rounds: list[list[Round]] = [[] for _ in candidates]
    began, collecting = perf_counter(), gc.isenabled()
    pool = ThreadPoolExecutor(max((len(stages) for stages in candidates), default=1))
    gc.disable()
    try:
        with intra_op_threads(threads):
            longest = 0.0
            for count in range(repeats + 1):
                start = perf_counter()
                if count > 1 and start - began + longest > budget_seconds:
                    break
                for place in range(len(candidates)):
                    which = (place + count) % len(candidates)
                    measured = _one_round(candidates[which], threads, pool if together else None)
                    if count:
                        rounds[which].append(tuple(measured))
                longest = max(longest, perf_counter() - start) if count else 0.0
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # after Ctrl-C a stage may still run; nobody waits for it
        if collecting:
            gc.enable()
    return tuple(map(tuple, rounds))


def _one_round(stages: Sequence[Stage], threads: int, pool: ThreadPoolExecutor | None) -> list[tuple[float, float]]:
    if pool is None:
        return [_timed(stage) for stage in stages]
    ready = Barrier(len(stages))

    def run(stage: Stage) -> tuple[float, float]:
        with intra_op_threads(threads):
            ready.wait()
            return _timed(stage)

    futures = [pool.submit(run, stage) for stage in stages]
    return [future.result() for future in futures]


def _timed(stage: Stage) -> tuple[float, float]:
    forward, backward = stage
    start = perf_counter()
    kept = forward()
    middle = perf_counter()
    backward(kept)
    return middle - start, perf_counter() - middle


def _summary(samples: Sequence[tuple[float, float]]) -> StageTime:
    forward, backward = (float(np.median(values)) for values in zip(*samples, strict=True))
    return StageTime(forward, backward, relative_spread([f + b for f, b in samples]))
