"""Is what ``convoy plan`` ranks what then happens? Time of a step, every strategy, predicted beside measured.

    python benchmarks/prediction/run.py --nets resnet20
    python benchmarks/prediction/run.py --nets resnet56 --batch 128 --rounds 3 --steps 2

One process plans (``convoy.plan`` without a strategy) before every round, as the machine's speed drifts; in a round
every row of the first plan's table is trained as its options say, each in a process of its own, in turns. Medians over
plans and over rounds. Speculation is held at the acceptance that the plan assumes; epochs of ``bilayered`` are as short
in the plan as in the run. The error is measured over predicted - 1. Pairs of rows are ranked right where the measured
order is the predicted one; those that were measured within ``--apart`` of each other count as right either way.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.contender import Contender
from common.rounds import Noise, finish, run_rounds, seconds, shown, spread, table
from contestants import Planner, processes, trained

NETS = ("resnet20", "resnet56", "vgg16", "alexnet")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--plans", type=int, default=0, help="at most; by default one before every round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="measured steps of every row in a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--apart", type=float, default=0.1, help="measured times closer than this are one rank")
    parser.add_argument("--only", default="", help="strategies, such as concurrent,speculative")
    return parser.parse_args()


class Predictions:
    """Plans when it is asked to, in a process of its own. ``rows``: name of a row → its forecasts and options."""

    def __init__(self, net: str, options: argparse.Namespace) -> None:
        self.rows: dict[str, Any] = {}
        self.plans: list[dict[str, Any]] = []
        self._most = options.plans or options.rounds
        self._planner = Contender("plan", Planner, {"net": net, "batch": options.batch, "threads": options.threads})
        self._planner.start()

    def again(self) -> None:
        answer = self._planner.measure(1, timeout_seconds=600.0) if len(self.plans) < self._most else None
        if answer is None:
            return
        self.plans.append({key: answer[key] for key in ("seconds", "refused", "advice")})
        for name, row in answer["rows"].items():
            self.rows.setdefault(name, {"predicted": [], **row})["predicted"].append(row["step_seconds"])

    def stop(self) -> None:
        self._planner.stop()


def measure(net: str, options: argparse.Namespace) -> dict[str, Any]:
    planner = Predictions(net, options)
    planner.again()
    rows = dict(planner.rows)
    if options.only:
        rows = {name: row for name, row in rows.items() if row["strategy"] in options.only.split(",")}
    shared = {"net": net, "batch": options.batch, "threads": options.threads}
    contenders = []
    for name, row in rows.items():
        if row["strategy"] == "hybrid":
            continue  # the mean of two others
        if row["strategy"] == "DDP":
            contenders.append(Contender(name, processes, {**shared, "threads": 1}, processes=options.threads))
        else:
            contenders.append(Contender(name, trained, {**shared, **row}))
    try:
        for contender in contenders:
            began = time.perf_counter()
            contender.start()
            print(
                f"{net}: {contender.name} ready after {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True
            )
        ready = [contender for contender in contenders if contender.error is None]
        measured = run_rounds(ready, options.rounds, options.steps, lambda n: planner.again() if n else None)
    finally:
        planner.stop()
        for contender in contenders:
            contender.stop()
    result: dict[str, Any] = {}
    for contender in contenders:
        predicted, taken = median(rows[contender.name]["predicted"]), spread(seconds(measured, contender.name), 6)
        plans = [round(one, 6) for one in rows[contender.name]["predicted"]]
        result[contender.name] = {"predicted_seconds": predicted, "plans": plans, "measured_seconds": taken}
        if taken is not None:
            result[contender.name]["error"] = round(taken["median"] / predicted - 1.0, 4)
        if contender.error is not None:
            result[contender.name]["failed"] = contender.error
    return {"plans": planner.plans, "rows": result, **ranking(result, options.apart)}


def ranking(rows: Mapping[str, Any], apart: float) -> dict[str, Any]:
    """How many pairs of rows stand in the measured order, and what taking the plan's first row costs."""
    known = {name: row for name, row in rows.items() if row["measured_seconds"] is not None}
    wrong = []
    for a, b in combinations(known, 2):
        ours, theirs = (known[name]["measured_seconds"]["median"] for name in (a, b))
        order = known[a]["predicted_seconds"] < known[b]["predicted_seconds"]
        if abs(ours / theirs - 1.0) > apart and (ours < theirs) != order:
            wrong.append([a, b])
    pairs = len(known) * (len(known) - 1) // 2
    if not known:
        return {"pairs": 0, "ranked_wrong": []}
    chosen = min(known, key=lambda name: known[name]["predicted_seconds"])
    fastest = min(row["measured_seconds"]["median"] for row in known.values())
    regret = known[chosen]["measured_seconds"]["median"] / fastest - 1.0
    return {"pairs": pairs, "ranked_wrong": wrong, "chosen": chosen, "regret": round(regret, 4)}


def main() -> None:
    options = arguments()
    noise, nets = Noise(), {}
    for net in options.nets.split(","):
        nets[net] = measure(net, options)
    lines = []
    errors = []
    for net, found in nets.items():
        for name, row in found["rows"].items():
            off = row.get("error")
            errors += [] if off is None else [abs(off)]
            lines.append(
                (net, name, f"{row['predicted_seconds'] * 1e3:.1f}", shown(row["measured_seconds"], 1, 1e3),
                 None if off is None else f"{off:+.0%}")
            )  # fmt: skip
    print(table(("network", "how", "predicted ms", "measured ms", "off"), lines))
    for net, found in nets.items():
        wrong = "; ".join(f"{a} and {b}" for a, b in found["ranked_wrong"]) or "none"
        print(f"{net}: of {found['pairs']} pairs ranked wrong: {wrong}")
    result: dict[str, Any] = {
        "benchmark": "prediction",
        "batch": options.batch,
        "threads": options.threads,
        "nets": nets,
    }
    if errors:
        result |= {"mean_error": round(sum(errors) / len(errors), 4), "greatest_error": max(errors)}
        print(f"off by {result['mean_error']:.1%} on average, {result['greatest_error']:.1%} at worst")
    finish({**result, "noise": noise.report()})


if __name__ == "__main__":
    main()
