"""How fast this machine multiplies, moves bytes and dispatches: three constants from a micro-benchmark."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from convoy.errors import OptionError
from convoy.graph.timed_pass import intra_op_threads


@dataclass(frozen=True, slots=True)
class Machine:
    """``flops_per_second``: float32 matrix product, a multiply and an add counted as two. ``bytes_per_second``: read
    and written, of tensors larger than the caches. ``call_seconds``: a call that computes next to nothing."""

    flops_per_second: float
    bytes_per_second: float
    call_seconds: float


def measure_machine(*, threads: int = 1, device: str | torch.device = "cpu", seconds: float = 0.2) -> Machine:
    """Measure for about ``seconds`` (after tensors are made), taking the best of many tries of each.

    Raises OptionError for a time or a number of threads that is not above 0.
    """
    if seconds <= 0 or threads < 1:
        raise OptionError(f"seconds is {seconds} and threads is {threads}", hint="give numbers above 0")
    place, size = torch.device(device), 512
    with intra_op_threads(threads), torch.no_grad():
        left, right = torch.ones(size, size, device=place), torch.ones(size, size, device=place)
        product, tiny = torch.empty_like(left), torch.ones(1, device=place)
        source = torch.ones(8 * 1024 * 1024, device=place)
        goal = torch.ones_like(source)
        share = seconds / 3

        def multiply() -> Tensor:
            return torch.mm(left, right, out=product)

        return Machine(
            flops_per_second=2.0 * size**3 / _best(multiply, place, share),
            bytes_per_second=2.0 * source.nbytes / _best(lambda: goal.copy_(source), place, share),
            call_seconds=_best(lambda: tiny.neg(), place, share),
        )


def _best(work: Callable[[], Tensor], device: torch.device, seconds: float) -> float:
    """Shortest time of one call, within ``seconds``; one call warms up."""

    def timed() -> float:
        start = perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return perf_counter() - start

    timed()
    end = perf_counter() + seconds
    best = timed()
    while perf_counter() < end:
        best = min(best, timed())
    return best
