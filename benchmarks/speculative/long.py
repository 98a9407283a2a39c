"""The long runs (``accuracy.py``): a table, paired by seed with exact training, and a chart of accuracy over time.

    python benchmarks/speculative/long.py --net plain6 --charts docs

Time is modelled (see ``cost.py``): of the whole run, in units of training it exactly on one engine.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from convoy.comparison.statistics import interval
from convoy.drawing.chart import Chart, Line, chart_svg

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.rounds import table

RESULTS = Path(__file__).resolve().parent / "results"
NAMES = {
    "sequential": "exact, two engines",
    "faithful-dithered-zero-1": "faithful `dithered:zero`, 1 (the default)",
    "faithful-zero-0.5": "faithful `zero`, 0.5",
    "faithful-label-last-0.25": "faithful `label-last`, 0.25 (published)",
    "late": "(d) one step late",
    "late-acc4": "(d) a quarter of a step late, `predict+spike`",
    "second": "(b) lower part every second",
    "skipped-zero": "(f) zero by chance",
}

Runs = dict[str, dict[int, dict[str, Any]]]
"""Variant → seed → its result."""


def read(net: str) -> Runs:
    found: Runs = {}
    for path in sorted(RESULTS.glob(f"{net}-*-s*.json")):
        variant, _, seed = path.stem.removeprefix(f"{net}-").rpartition("-s")
        found.setdefault(variant, {})[int(seed)] = json.loads(path.read_text())
    order = list(NAMES)
    return {name: found[name] for name in sorted(found, key=lambda n: (order.index(n) if n in order else 99, n))}


def shown(runs: Runs) -> str:
    base, rows = runs["sequential"], []
    for name, own in runs.items():
        pairs = [run["accuracy"][-1] - base[seed]["accuracy"][-1] for seed, run in own.items() if seed in base]
        mean, half = interval(pairs) if pairs else (0.0, None)
        apart = f"{mean:+.2f}" + ("" if half is None else f" ± {half:.2f}")
        accepted = [run["accepted"][-1] for run in own.values() if run.get("accepted")]
        rows.append(
            (
                NAMES.get(name, name), len(own), f"{fmean(run['accuracy'][-1] for run in own.values()):.2f}",
                "–" if name == "sequential" or not pairs else apart,
                f"{1 - fmean(run['modelled_time'] for run in own.values()):.0%}",
                f"{fmean(accepted):.0%}" if accepted else "–",
            )
        )  # fmt: skip
    return table(("variant", "seeds", "accuracy", "difference", "time saved", "accepted at the end"), rows)


def chart(net: str, runs: Runs) -> Chart:
    """Mean accuracy after every epoch over the time until then, with equal epochs."""
    lines = []
    for number, (name, own) in enumerate(runs.items()):
        epochs = min(len(run["accuracy"]) for run in own.values())
        time = fmean(run["modelled_time"] for run in own.values())
        reached = [fmean(run["accuracy"][epoch] for run in own.values()) for epoch in range(epochs)]
        title = NAMES.get(name, name).replace("`", "")
        lines.append(Line(title, [time * (e + 1) / epochs for e in range(epochs)], reached, family=number))
    return Chart(
        f"{net}: accuracy over time", "modelled time, of exact training on one engine", "test accuracy, %",
        tuple(lines), from_zero=True,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="plain6")
    parser.add_argument("--charts", type=Path, help="folder that the chart goes to")
    options = parser.parse_args()
    runs = read(options.net)
    print(shown(runs))
    if options.charts is not None:
        path = options.charts / f"speculative-{options.net}.svg"
        path.write_text(chart_svg(chart(options.net, runs)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
