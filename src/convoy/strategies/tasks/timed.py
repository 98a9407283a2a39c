"""What each action of a task program takes on this machine, one after the other in one thread."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from convoy.engines.program import Store
from convoy.graph.timed_pass import intra_op_threads
from convoy.strategies.tasks.ops import Frame
from convoy.strategies.tasks.program import TaskProgram


def action_seconds(
    program: TaskProgram,
    frame: Callable[[int], Frame],
    *,
    device: str = "cpu",
    threads: int = 1,
    repeats: int = 3,
    budget_seconds: float = 5.0,
) -> list[float]:
    """Seconds of each action by its place in the schedule, alone, with ``threads`` intra-op threads: the least of
    ``repeats`` passes after one that warms up, fewer if another would go past ``budget_seconds``.

    ``frame(number)`` makes the mini-batch of a pass. The program trains: give it one of a copy of the model.
    """
    least = [float("inf")] * len(program.recurring.entries)
    cuda = torch.device(device).type == "cuda"
    store = Store()
    with torch.random.fork_rng(devices=[device] if cuda else []), intra_op_threads(threads):
        began = 0.0
        for number in range(1 + repeats):
            if number == 1:
                began = time.perf_counter()
            elif number > 1 and (time.perf_counter() - began) * number / (number - 1) > budget_seconds:
                break
            program.begin(frame(number))
            for place, (_, action) in enumerate(program.recurring.at(number, {})):
                start = time.perf_counter()
                program.run(action, store)
                if cuda:
                    torch.cuda.synchronize(device)
                spent = time.perf_counter() - start
                least[place] = spent if number < 2 else min(least[place], spent)  # the first pass only warms up
            program.end(number)
    return least
