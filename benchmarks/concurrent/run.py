"""What do CONV and non-CONV tasks side by side bring on two cores, and what does their balance allow?

    python benchmarks/concurrent/run.py --networks vgg16,bottlenecks --rounds 5 --steps 2

Modes: one (PyTorch's loop, one thread), two (the same on two threads), limit (two independent loops, one a core: what
the hardware gives), kind (Concurrent, every task on the engine of its kind, as published), planned (Concurrent, an idle
engine takes tasks of the other kind), tasks (Sequential(inner="tasks"), two workers). Beside the ratios stand the
bound of the balance (all tasks one after the other / those of the busier kind, as the plan measured them) and the time
that the cores spent, which counts nothing that other programs took: on a machine of its own, a step of two workers
takes at least half of it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.contender import Contender
from common.rounds import Noise, finish, ratios, run_rounds, seconds, shown, spread, table
from networks import SHAPES, PlainLoop, Strategies, TwoLoops

BAR = 1.5
MODES = ("one", "two", "limit", "kind", "planned", "tasks")


def contender(mode: str, shared: dict[str, Any], groups: int | None) -> Contender:
    if mode in ("one", "two"):
        return Contender(mode, PlainLoop, shared | {"threads": 1 + (mode == "two")})
    if mode == "limit":
        return Contender(mode, TwoLoops, shared | {"threads": 1}, processes=2)
    fields = {"inner": "tasks"} if mode == "tasks" else {"placement": mode, "groups": groups}
    return Contender(mode, Strategies, shared | {"threads": 2, "strategy": fields})


def measure(net: str, options: argparse.Namespace) -> dict[str, Any]:
    shared = {
        "model": net, "batch": options.batch, "shape": list(SHAPES[net]), "precision": "float32", "warm_up": 2
    }  # fmt: skip
    modes = options.modes.split(",")
    found = [contender(mode, shared, options.groups) for mode in modes]
    try:
        for one in found:
            one.start()
        measured = run_rounds(found, options.rounds, options.steps)
    finally:
        for one in found:
            one.stop()
    rows: dict[str, Any] = {}
    for one in found:
        rows[one.name] = {
            "seconds": spread(seconds(measured, one.name), 6),
            "cpu_seconds": spread(
                (a[one.name]["cpu_seconds"] for a in measured if "cpu_seconds" in a.get(one.name, {})), 6
            ),
            "times_one": spread(ratios(measured, "one", one.name), 4),
            **one.info,
        } | ({"error": one.error} if one.error else {})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="vgg16,bottlenecks", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="measured steps of every contender in a round")
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--groups", type=int, help="of output channels; by default from measured costs")
    options = parser.parse_args()
    noise = Noise()
    rows = {net: measure(net, options) for net in options.networks.split(",")}
    head = ("network", "mode", "ms a step", "core-ms a step", "times one core", "bound by kind", "predicted", "groups")
    lines = [
        (net, mode, shown(r["seconds"], 0, 1e3), shown(r["cpu_seconds"], 0, 1e3), shown(r["times_one"]),
         r.get("bound_by_kind"), r.get("predicted_speedup"), r.get("groups"))
        for net, modes in rows.items() for mode, r in modes.items()
    ]  # fmt: skip
    print(table(head, lines))
    finish({"benchmark": "concurrent", "bar": BAR, "batch": options.batch, "networks": rows, "noise": noise.report()})


if __name__ == "__main__":
    main()
