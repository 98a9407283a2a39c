"""What the screening found: a table beside exact training in the same time, and a chart for each regime.

    python benchmarks/speculative/plot.py benchmarks/speculative/results/screen.csv --charts docs \\
        --page docs/lab/speculative-screening.md

The line of a chart is exact training on two engines with 50 to 100 % of the epochs; what lies above it is worth it.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from convoy.drawing.chart import Chart, Line, chart_svg

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.rounds import table
from regimes import REGIMES

EXACT = "exact,"
FAMILIES = {
    "exact, two engines": EXACT,
    "controls": ("b:", "a:", "e:", "f:", "late:"),
    "d: one step late": "d:",
    "label memory": ("faithful label", "cut label", "cut error", "cut unbiased:label"),
    "skipped, confident": ("faithful zero", "cut zero"),
    "skipped, dithered": ("faithful dithered", "cut dithered:zero"),
    "other predictors": "cut ",
}


@dataclass(frozen=True)
class Found:
    """Means over the seeds of a variant. ``margin``: points above exact training in the same time, seed by seed."""

    name: str
    seeds: int
    accuracy: float
    time: float
    margin: tuple[float, ...]
    accepted: float | None
    agreement: float | None

    @property
    def family(self) -> str:
        return next(family for family, begins in FAMILIES.items() if self.name.startswith(begins))


def read(path: Path) -> dict[str, list[Found]]:
    """By regime, in the order of the file."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    curves: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    grouped: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        grouped[row["regime"], row["variant"]].append(row)
        if row["variant"].startswith(EXACT):
            curves[row["regime"], row["seed"]].append((float(row["time"]), float(row["accuracy"])))
    found: dict[str, list[Found]] = defaultdict(list)
    for (regime, name), same in grouped.items():
        curve = {row["seed"]: sorted(curves[regime, row["seed"]]) for row in same}
        margins = [float(r["accuracy"]) - at(curve[r["seed"]], float(r["time"])) for r in same if curve[r["seed"]]]
        mean = {key: _mean(same, key) for key in ("accuracy", "time", "accepted", "agreement")}
        found[regime].append(
            Found(
                name, len(same), mean["accuracy"] or 0.0, mean["time"] or 0.0, tuple(margins), mean["accepted"],
                mean["agreement"],
            )
        )  # fmt: skip
    return found


def _mean(rows: Sequence[Mapping[str, str]], key: str) -> float | None:
    values = [float(row[key]) for row in rows if row[key] != ""]
    return fmean(values) if values else None


def at(curve: Sequence[tuple[float, float]], time: float) -> float:
    """The curve's value, interpolated; that of its nearer end outside."""
    if time <= curve[0][0]:
        return curve[0][1]
    for (t0, a0), (t1, a1) in pairwise(curve):
        if time <= t1:
            return a0 + (a1 - a0) * (time - t0) / (t1 - t0)
    return curve[-1][1]


def shown(found: Sequence[Found]) -> str:
    head = ("variant", "seeds", "accuracy", "time", "beside exact", "accepted", "agreement")
    rows = []
    for one in sorted(found, key=lambda f: -fmean(f.margin or (0.0,))):
        spread = f" ({min(one.margin):+.1f} to {max(one.margin):+.1f})" if len(one.margin) > 1 else ""
        margin = "–" if one.name.startswith(EXACT) or not one.margin else f"{fmean(one.margin):+.1f}{spread}"
        accepted = "–" if one.accepted is None else f"{one.accepted:.0%}"
        agreement = "–" if one.agreement is None else f"{one.agreement:.2f}"
        rows.append((one.name, one.seeds, f"{one.accuracy:.1f}", f"{one.time:.2f}", margin, accepted, agreement))
    return table(head, rows)


def chart(regime: str, found: Sequence[Found]) -> Chart:
    lines = []
    for number, family in enumerate(FAMILIES):
        own = sorted((f for f in found if f.family == family), key=lambda f: f.time)
        if family == "exact, two engines":
            lines.append(Line(family, [f.time for f in own], [f.accuracy for f in own], family=number, points=True))
            continue
        for place, one in enumerate(own):  # each a dot; the first stands in the legend for all
            lines.append(Line(family, [one.time], [one.accuracy], family=number, faint=place > 0))
    label = "modelled time, of exact training on one engine"
    return Chart(f"{regime}: accuracy over time", label, "test accuracy, %", tuple(lines))


def page(regimes: Mapping[str, Sequence[Found]]) -> str:
    parts = [INTRODUCTION]
    for name, found in regimes.items():
        r = REGIMES[name]
        title = (
            f"{r.data}, {r.size} pixels, {r.images:,} images, batch {r.batch}, {r.epochs} epochs, rate up to {r.lr:g}"
        )
        norm = ", BatchNorm" if r.norm else ""
        parts.append(f"## {name}\n\n{title}{norm}; {r.warmup} exact mini-batches first, a probe every {r.probes}.\n\n"
                     f"{shown(found)}\n\n![{name}](../speculative-{name}.svg)\n")  # fmt: skip
    return "\n".join(parts)


INTRODUCTION = """# Lab: every variant of speculation that was screened

Written by `python benchmarks/speculative/plot.py benchmarks/speculative/results/screen.csv --page …`; what it means
is in the [lab](speculative.md). A plain CNN of six convolutions (16-16-pool-32-32-pool-64-64) without augmentation,
one-cycle schedule, SGD with momentum 0.9, tested on 5,000 images (standard error 0.7 points at 50 %, 0.2 at 98 %).
*Time* is modelled from operations for two equal engines, in units of exact training of all epochs on one; for (d),
the slower of the two stages that the cut makes. *Beside exact* is the distance to the line through exact training
on two engines with 50 to 100 % of the epochs: what is above it is worth it. Speculation goes on regardless
(`always`), but where the name ends in *auto*. Accuracies of 9 to 10 % are those of networks that fell apart.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--charts", type=Path, help="folder that the charts go to")
    parser.add_argument("--page", type=Path, help="file that all tables go to, as a page of the docs")
    options = parser.parse_args()
    regimes = read(options.file)
    if options.page is not None:
        options.page.write_text(page(regimes), encoding="utf-8")
    for regime, found in regimes.items():
        print(f"\n{regime}\n\n{shown(found)}")
        if options.charts is not None:
            path = options.charts / f"speculative-{regime}.svg"
            path.write_text(chart_svg(chart(regime, found)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
