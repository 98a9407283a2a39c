"""What do stages in Ray actors cost against threads? Same net, same cut, one thread a worker; ratios within a round.

    python benchmarks/ray_stages/run.py --rounds 5
    python benchmarks/ray_stages/run.py --case resnet56:128 --case resnet20:32 --steps 6

Beside the step: how long the workers compute in it, how long a hand-over takes (from the end of the forward of stage 1
to the start of that of stage 2, where stage 2 was waiting for it), and how many bytes cross.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "speed"))

import torch
from common.contender import Contender
from common.rounds import Noise, Rounds, finish, ratios, run_rounds, seconds, shown, spread, table
from contenders import ConvoyPipelined

CUTS = {"resnet20": 7, "resnet56": 19, "lenet5": 2, "vgg16": 5}
"""The layer after which to cut: the same for both, near the middle of the time."""


class Stages(ConvoyPipelined):
    """``ConvoyPipelined`` that also says what the stages did."""

    def measure(self, steps: int) -> Mapping[str, Any]:
        answer = dict(super().measure(steps))
        actions = [e for e in self._events if e.kind == "action" and e.lane]
        spent = {
            f"{kind}{i}": median([e.end - e.start for e in actions if e.name.startswith(f"{kind}{i}.")])
            for kind in "FB"
            for i in (1, 2)
        }
        ends = {e.name: e for e in actions}
        free_at = 0.0
        waits = []
        for event in sorted((e for e in actions if e.lane == "worker 2"), key=lambda e: e.start):
            before = ends.get(f"F1.{event.batch}")
            if event.name.startswith("F2.") and before is not None and free_at < before.end:
                waits.append(event.start - before.end)
            free_at = event.end
        moved = [e.data["bytes"] for e in actions if e.name.startswith(("F1.", "B2."))]
        return answer | {"spent": spent, "hand_over": median(waits) if waits else None, "bytes": max(moved)}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", metavar="MODEL:BATCH", help="may be repeated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warm-up", type=int, default=4)
    options = parser.parse_args()
    options.case = options.case or ["resnet56:128", "resnet20:128", "resnet20:32"]
    return options


def contenders(case: str, warm_up: int) -> list[Contender]:
    model, _, batch = case.partition(":")
    shared = {"model": model, "batch": int(batch), "shape": [3, 32, 32], "precision": "float32"}
    shared |= {"warm_up": warm_up, "threads": 2}
    return [
        Contender(engine, Stages, shared | {"strategy": {"ppv": [CUTS[model]], "engine": engine}})
        for engine in ("threads", "ray")
    ]


def row(measured: Rounds) -> dict[str, Any]:
    slower = [1 / r for r in ratios(measured, "threads", "ray")]
    found: dict[str, Any] = {"ray_over_threads": spread(slower, 3)}
    for name in ("threads", "ray"):
        answers = [answers[name] for answers in measured if name in answers]
        found[name] = {
            "seconds": spread(seconds(measured, name), 4),
            "spent": {key: spread([a["spent"][key] for a in answers], 4) for key in answers[0]["spent"]},
            "hand_over": spread([a["hand_over"] for a in answers if a["hand_over"] is not None], 4),
            "busy": answers[-1]["busy"],
        }
    return found | {"bytes": measured[-1]["ray"]["bytes"]}


def main() -> None:
    options = arguments()
    noise = Noise()
    rows: dict[str, Any] = {}
    for case in options.case:
        found = contenders(case, options.warm_up)
        try:
            for contender in found:
                contender.start()
            rows[case] = row(run_rounds(found, options.rounds, options.steps))
        finally:
            for contender in found:
                contender.stop()
    head = ("case", "threads, ms", "ray, ms", "ray / threads", "hand-over by threads, ms", "by ray, ms", "MB")
    cells = [
        (
            case,
            shown(r["threads"]["seconds"], 1, 1e3),
            shown(r["ray"]["seconds"], 1, 1e3),
            shown(r["ray_over_threads"]),
            shown(r["threads"]["hand_over"], 1, 1e3),
            shown(r["ray"]["hand_over"], 1, 1e3),
            f"{r['bytes'] / 1e6:.1f}",
        )
        for case, r in rows.items()
    ]
    print(table(head, cells))
    result = {"benchmark": "ray_stages", "rounds": options.rounds, "steps": options.steps, "cases": rows}
    finish(result | {"noise": noise.report(), "torch": torch.__version__})


if __name__ == "__main__":
    main()
