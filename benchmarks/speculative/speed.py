"""How much of the time of one engine do two save, against the share of samples that is accepted?

    python benchmarks/speculative/speed.py --model plain6 --batch 64 --rounds 7 --steps 8
    python benchmarks/speculative/speed.py --model resnet20 --batch 128 --accepted 0,0.9,1 --forms faithful

Modes: one (convoy's Sequential, one core), tasks (exact, tiles of a step shared by two cores), exact (exact, two
one-core engines, weight gradients as tasks of their own), late (exact but one step late: a pipeline of two stages), and
each form (with ``:PREDICTOR`` another than its own; "alone" on one core) at each --accepted share, which is forced: the
test is carried out and its answer replaced. Synthetic images, so that nothing but time is compared.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.contender import Contender
from common.rounds import Noise, finish, ratios, run_rounds, seconds, shown, spread, table
from contenders import Engines


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="plain6", help="plain6, vgg16, resnet20, …")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--shape", default="3,32,32", help="channels, height, width of an image")
    parser.add_argument("--accepted", default="0,0.5,0.9,1", help="shares of the samples")
    parser.add_argument("--forms", default="faithful,faithful:zero,alone faithful:zero,cut")
    parser.add_argument("--cut", help="of the cut form")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=8, help="measured steps of every contender in a round")
    parser.add_argument(
        "--warm-up", type=int, default=20, help="steps before the first round; priorities settle in them"
    )
    return parser.parse_args()


def contenders(options: argparse.Namespace) -> list[Contender]:
    shared: dict[str, Any] = {
        "model": options.model,
        "batch": options.batch,
        "shape": [int(n) for n in options.shape.split(",")],
        "warm_up": options.warm_up,
    }
    found = [Contender(mode, Engines, {**shared, "mode": mode}) for mode in ("one", "tasks", "exact", "late")]
    for form in options.forms.split(","):
        own = {"cut": options.cut} if form.startswith("cut") else {}
        for accepted in map(float, options.accepted.split(",")):
            name = f"{form} {accepted:.0%}"
            found.append(Contender(name, Engines, {**shared, **own, "mode": form, "accepted": accepted}))
    return found


def main() -> None:
    options = arguments()
    noise, found = Noise(), contenders(options)
    try:
        for contender in found:
            contender.start()
        measured = run_rounds(found, options.rounds, options.steps)
    finally:
        for contender in found:
            contender.stop()
    rows = {}
    for contender in found:
        saved = [1.0 - 1.0 / ratio for ratio in ratios(measured, "one", contender.name)]
        plan = contender.info.get("plan") or {}
        rows[contender.name] = {
            "seconds": spread(seconds(measured, contender.name), 5),
            "saved": spread(saved, 4),
            "predicted": _predicted(contender.name, plan),
            "error": contender.error,
        }
    head = (f"{options.model}, batch {options.batch}", "ms a step", "time saved", "predicted from operations")
    lines = (
        (name, shown(r["seconds"], 1, 1e3), shown(r["saved"], 3), r["predicted"]) for name, r in rows.items()
    )  # fmt: skip
    print(table(head, lines))
    finish({"benchmark": "speculative speed", "model": options.model, "batch": options.batch, "modes": rows,
            "noise": noise.report()})  # fmt: skip


def _predicted(name: str, plan: dict[str, Any]) -> float | None:
    if name == "exact":
        return plan.get("exact_saving")
    share = float(name.split()[-1].rstrip("%")) / 100 if " " in name else None
    return next((s["share"] for s in plan.get("savings", ()) if s["acceptance"] == share), None)


if __name__ == "__main__":
    main()
