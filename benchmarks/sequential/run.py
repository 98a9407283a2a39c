"""Is convoy's Sequential as fast as the hand-written loop? It is the baseline of everything else.

    python benchmarks/sequential/run.py --rounds 9 --steps 10
    python benchmarks/sequential/run.py --cases lenet5:64 --threads 1

The same model, fused SGD and synthetic images, channels last, float32, in two processes that take turns. Bar: 3 %,
the median over the rounds of (convoy's time / the loop's time in the same round).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "speed"))

from common.contender import Contender
from common.rounds import Noise, finish, ratios, run_rounds, seconds, shown, spread, table
from contenders import ConvoySequential, Loop

BAR = 1.03


def measure(net: str, batch: int, threads: int, options: argparse.Namespace) -> dict[str, Any]:
    shared = {
        "model": net,
        "batch": batch,
        "shape": [1, 28, 28] if net == "lenet5" else [3, 32, 32],
        "precision": options.precision,
        "warm_up": 3,
        "threads": threads,
    }
    found = [Contender("loop", Loop, shared), Contender("convoy", ConvoySequential, shared)]
    try:
        for contender in found:
            contender.start()
        measured = run_rounds(found, options.rounds, options.steps * (20 if net == "lenet5" else 1))
    finally:
        for contender in found:
            contender.stop()
    row: dict[str, Any] = {name: spread(seconds(measured, name), 6) for name in ("loop", "convoy")}
    row["convoy_over_loop"] = spread(ratios(measured, "convoy", "loop"), 4)
    if row["convoy_over_loop"] is not None:
        row["within_bar"] = row["convoy_over_loop"]["median"] <= BAR
    return row | {f"{c.name}_error": c.error for c in found if c.error}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="resnet20:128,vgg16:128,lenet5:64", help="model:batch, joined by commas")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=5, help="a round; twenty times as many for lenet5")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    noise, rows = Noise(), {}
    for case in options.cases.split(","):
        net, _, batch = case.partition(":")
        for threads in map(int, options.threads.split(",")):
            rows[f"{net}, batch {batch}, {threads} thread{'s' * (threads > 1)}"] = measure(
                net, int(batch), threads, options
            )
    head = ("case", "loop, ms", "convoy, ms", "convoy / loop", f"within {BAR}")
    print(
        table(
            head,
            (
                (case, shown(r["loop"], 2, 1e3), shown(r["convoy"], 2, 1e3), shown(r["convoy_over_loop"], 3),
                 {True: "yes", False: "no"}.get(r.get("within_bar")))
                for case, r in rows.items()
            ),
        )
    )  # fmt: skip
    finish({"benchmark": "sequential", "bar": BAR, "cases": rows, "noise": noise.report()})


if __name__ == "__main__":
    main()
