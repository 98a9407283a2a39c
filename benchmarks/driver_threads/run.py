"""What a driver with all intra-op threads takes from the workers of a pipeline.

    python benchmarks/driver_threads/run.py
    python benchmarks/driver_threads/run.py --cases resnet56:32,resnet20:128 --rounds 4 --steps 20

Two stages on two workers, images as a loader makes them (not channels last). "all": the driver keeps PyTorch's threads
while the workers are busy, as before it was held at one; "one": as it is. In turns within a round, with the cuts of one
plan; ms a step, the median over the rounds.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "memory"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from common.rounds import Noise, finish, table
from forecast.run import made, optimizer_of

import convoy
from convoy.engines.driver import OneThread
from convoy.strategies.base import Settings
from convoy.strategies.pipelined import Pipelined

THREADS = 2
SETTLE = 6


def step_ms(net: str, batch: int, cuts: Sequence[str], steps: int) -> float:
    model, loss, x, y = made(net, batch)
    strategy, settings = Pipelined(cuts=cuts), Settings(threads=THREADS, forecast=False)
    with strategy.bind(model, loss, optimizer_of(model), settings=settings) as step:
        for _ in range(SETTLE):
            step(x, y)
        began = time.perf_counter()
        for _ in range(steps):
            step(x, y)
        return (time.perf_counter() - began) / steps * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="hf-resnet:32,resnet20:32,resnet56:32,resnet20:128")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    noise, cases = Noise(), {}
    for case in options.cases.split(","):
        net, batch = case.split(":")
        model, loss, x, y = made(net, int(batch))
        plan: Any = convoy.plan(model, (x, y), Pipelined(stages=2), THREADS, loss=loss, optimizer=optimizer_of(model))
        times: dict[str, list[float]] = {"all": [], "one": []}
        for _ in range(options.rounds):
            with mock.patch.object(OneThread, "hold", lambda *_: None):
                times["all"].append(step_ms(net, int(batch), plan.cuts, options.steps))
            times["one"].append(step_ms(net, int(batch), plan.cuts, options.steps))
        cases[case] = {"cuts": list(plan.cuts), "ms": times}
        print(case, times, file=sys.stderr, flush=True)
    rows = [(case, *(f"{median(found['ms'][mode]):.1f}" for mode in ("all", "one"))) for case, found in cases.items()]
    print(table(("network:batch", "all", "one"), rows))
    finish({"benchmark": "driver_threads", "cases": cases, "noise": noise.report(), "torch": torch.__version__})


if __name__ == "__main__":
    main()
