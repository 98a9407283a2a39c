"""Into how many slices should ``Sequential(inner="tasks")`` cut? Milliseconds a step beside the plain loop.

    python docs/lab/slices.py --nets resnet20:32,resnet20:128,resnet56:32,vgg16:32,plain6:64

All variants in one process, in turns; medians. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from contextlib import ExitStack
from statistics import median
from typing import Any

import torch
from torch import nn

from convoy import Sequential, Settings
from convoy.models import build
from convoy.strategies.tasks.step import TaskStep

SLICES = (1, 2, 4, 6)


def measure(net: str, batch: int, rounds: int) -> dict[str, float]:
    """Name of the variant → milliseconds."""
    model = build(net, channels=3, image_size=32)
    x, y = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
    steps: dict[str, Any] = {}
    with ExitStack() as stack:

        def add(name: str, threads: int, slices: int | None) -> None:
            own = copy.deepcopy(model)
            optimizer = torch.optim.SGD(own.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
            loss, settings = nn.functional.cross_entropy, Settings(threads=threads)
            if slices is None:
                bound: Any = Sequential().bind(own, loss, optimizer, settings=settings)
            else:
                bound = TaskStep(own, loss, optimizer, settings, None, tiles=slices)
            steps[name] = stack.enter_context(bound)

        add("one core", 1, None)
        add("two threads", 2, None)
        for count in SLICES:
            add(f"{count} slices", 2, count)
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for number in range(rounds + 1):
            for name, step in steps.items():
                torch.set_num_threads(2 if name == "two threads" else 1)
                step(x, y)
                start = time.perf_counter()
                step(x, y)
                if number:  # the first round warms up
                    seconds[name].append(time.perf_counter() - start)
    return {name: round(1e3 * median(values), 1) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default="resnet20:32,resnet20:128,resnet56:32,vgg16:32,plain6:64")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    found = {}
    for each in asked.nets.split(","):
        net, _, batch = each.partition(":")
        found[each] = measure(net, int(batch), asked.rounds)
        print(each, found[each], flush=True)
    print(json.dumps({"milliseconds": found}))


if __name__ == "__main__":
    main()
