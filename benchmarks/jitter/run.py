"""What do uneven steps cost a clock with slack, and one without?

    python benchmarks/jitter/run.py
    python benchmarks/jitter/run.py --model resnet56 --ppv 19 --batch 32 --levels 0,0.1,0.5 --rounds 7

Every contender has the same cut. Before each forward and backward action its worker sleeps for an exponentially
distributed time whose mean is --levels times what the worker's actions take by themselves, so that a worker is late
now and then, as it is beside other programs. A worker that bore only its own delays would take 1 + level times as
long; what a clock takes beyond that is waiting for others. "foretold" is a walk of the same schedule with the times of
the undisturbed actions and the same delays.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from random import Random
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "speed"))

import torch
from common.contender import Contender
from common.rounds import Noise, Rounds, finish, run_rounds, shown, spread, table
from contenders import ConvoyPipelined, optimizer_of
from torch import nn

from convoy.schedule.action import Action
from convoy.schedule.walk import walk
from convoy.strategies.base import Settings
from convoy.strategies.pipelined import Pipelined
from convoy.strategies.pipelined.plan import pipeline_schedule
from convoy.strategies.pipelined.step import PipelinedStep

CLOCKS: Mapping[str, Mapping[str, Any]] = {
    "registers": {},
    "1f1b": {"clock": "1f1b"},
    "registers, accumulate 4": {"accumulate": 4},
    "1f1b, accumulate 4": {"clock": "1f1b", "accumulate": 4},
}


def delay(action: Action, level: float, seconds: float) -> float:
    """Seconds: the same for the same action in every run. ``seconds``: what such actions take on average."""
    return Random(str(action)).expovariate(1.0) * level * seconds if action.kind in "FB" and level else 0.0


class Jittered(ConvoyPipelined):
    """A pipeline whose workers are late now and then, at every level in turn."""

    def _bind(self, strategy: Pipelined, model: nn.Module, options: Mapping[str, Any]) -> PipelinedStep:
        self._levels: list[float] = options["levels"]
        self._level, self._takes = 0.0, {}
        settings = Settings(threads=options["threads"], precision=options["precision"])
        loss, optimizer = nn.functional.cross_entropy, optimizer_of(model)
        return PipelinedStep(strategy, model, loss, optimizer, settings, self._events.append, disturb=self._disturb)

    def _disturb(self, lane: str, action: Action) -> None:
        if self._level and action.kind in "FB":
            time.sleep(delay(action, self._level, self._takes[lane]))

    def measure(self, steps: int) -> Mapping[str, Any]:
        self._level = 0.0
        found: dict[float, float] = {0.0: float(super().measure(steps)["seconds"])}
        spent: dict[str, list[float]] = {}
        times: dict[str, list[float]] = {}
        for event in self._events:
            if event.kind == "action" and event.name[0] in "FB":
                spent.setdefault(event.lane, []).append(event.end - event.start)
                times.setdefault(event.name.partition(".")[0], []).append(event.end - event.start)
        self._takes = {lane: mean(seconds) for lane, seconds in spent.items()}
        plan = self._step.plan()
        assert plan is not None
        alone = {name: mean(seconds) for name, seconds in times.items()}
        lanes = {name: lane for lane in spent for name in alone if name[1:] == lane.split()[-1]}
        foretold = {}
        for level in self._levels:
            self._level = level
            if level:
                found[level] = float(super().measure(steps)["seconds"])
            foretold[level] = walked(plan, alone, {name: self._takes[lanes[name]] for name in alone}, level)
        self._level = 0.0
        return {
            "seconds": found[0.0],
            "times": {str(level): found[level] / found[0.0] for level in self._levels},
            "foretold": {str(level): foretold[level] / foretold[self._levels[0]] for level in self._levels},
        }


def walked(plan: Any, alone: Mapping[str, float], takes: Mapping[str, float], level: float) -> float:
    """Seconds a mini-batch when every action takes its time and its delay, by walking the schedule."""
    batches, warm = 80, 10
    schedule = pipeline_schedule(plan.delays, plan.links, plan.placement, plan.accumulate, batches)

    def seconds(action: Action) -> float:
        name = f"{action.kind}{action.subject}"
        return alone[name] + delay(action, level, takes[name]) if name in alone else 0.0

    timed = walk(schedule, seconds).timed
    ends = {t.action.batch: t.end for t in timed if t.action.kind == "U" and t.action.subject == "1"}
    return (ends[batches - warm] - ends[warm]) / (batches - 2 * warm)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--ppv", default="7", help="where to cut, the same for all")
    parser.add_argument("--levels", default="0,0.1,0.3,1", help="mean delay over the mean time of an action; 0 first")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30, help="measured steps at each level in a round")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    noise = Noise()
    levels = [float(level) for level in options.levels.split(",")]
    ppv = [int(layer) for layer in options.ppv.split(",")]
    shared = {"model": options.model, "batch": options.batch, "shape": [3, 32, 32], "precision": "float32"}
    shared |= {"warm_up": 4, "threads": len(ppv) + 1, "levels": levels}
    found = [Contender(name, Jittered, shared | {"strategy": {"ppv": ppv, **how}}) for name, how in CLOCKS.items()]
    try:
        for contender in found:
            contender.start()
        measured: Rounds = run_rounds(found, options.rounds, options.steps)
    finally:
        for contender in found:
            contender.stop()
    rows: dict[str, Any] = {}
    for name in CLOCKS:
        answers = [answers[name] for answers in measured if name in answers]
        rows[name] = {
            what: {str(level): spread([a[what][str(level)] for a in answers], 3) for level in levels}
            for what in ("times", "foretold")
        } | {"seconds": spread([a["seconds"] for a in answers], 5)}
    late = [level for level in levels if level]
    head = ("clock", "ms a step undisturbed", *(f"delays of {level:.0%}: times slower (foretold)" for level in late))
    cells = []
    for name, row in rows.items():
        told = [f"{shown(row['times'][str(v)])} ({row['foretold'][str(v)]['median']:.2f})" for v in late]
        cells.append((name, shown(row["seconds"], 1, 1e3), *told))
    print(f"{options.model}, batch {options.batch}, cut after layer {options.ppv}\n\n{table(head, cells)}")
    result = {"benchmark": "jitter", "model": options.model, "batch": options.batch, "ppv": ppv, "levels": levels}
    finish(result | {"clocks": rows, "noise": noise.report(), "torch": torch.__version__})


if __name__ == "__main__":
    main()
