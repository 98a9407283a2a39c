"""Every variant on short runs: accuracy beside modelled time. What is worth it goes on to ``accuracy.py``.

    python benchmarks/speculative/screen.py --regimes mnist-1,cifar-64 --seeds 0,1 --out results/screen.csv
    python benchmarks/speculative/screen.py --regimes cifar-64 --only "zero|exact" --out results/screen.csv

One row a run; a run that has its row already is left out, so the same command goes on where it was stopped. ``time`` is
that of two engines (see ``cost.py``) over that of exact training of all epochs on one. Runs are in one thread, with
the numbers of two engines.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import count, islice
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from controls import Skipping, lower_part
from cost import Costs, costs
from regimes import REGIMES, VARIANTS, Regime, Variant, slim
from torch import nn

from convoy.data import DataBundle, open_data
from convoy.strategies.base import Settings, Strategy
from convoy.strategies.pipelined import Pipelined
from convoy.strategies.sequential import Sequential
from convoy.strategies.speculative import Speculative

TESTED = 5000  # images of the test part, the same for all
COLUMNS = ("regime", "variant", "seed", "accuracy", "loss", "time", "accepted", "agreement", "seconds")


def strategy_of(variant: Variant, regime: Regime, cut: str) -> Strategy:
    if variant["kind"] == "delayed":
        how = {key: variant[key] for key in ("clock", "accumulate", "correction") if key in variant}
        return Pipelined(cuts=[cut], engine="inline", **how)
    if variant["kind"] != "speculative":
        return Sequential()
    fields = {key: variant[key] for key in ("form", "predictor", "threshold")}
    controller = variant["controller"] or f"always:{regime.probes}"
    return Speculative(**fields, warmup=regime.warmup, controller=controller, engine="inline")


def skipping_of(variant: Variant, lower: Any, optimizer: Any, seed: int, steps: int) -> Skipping | None:
    if variant["kind"] != "skip":
        return None
    fields = {key: variant[key] for key in ("alternate", "fill", "unbiased") if key in variant}
    return Skipping(lower, optimizer, variant["rate"], seed, begin=round(variant.get("begin", 0.0) * steps), **fields)


@cache
def opened(regime: Regime, seed: int) -> tuple[DataBundle, DataBundle]:
    """What is trained on, and what accuracy is measured on."""

    def of(batch: int, images: int, seed: int) -> DataBundle:
        return open_data(regime.data, batch_size=batch, seed=seed, image_size=regime.size, augment=False, limit=images)

    return of(regime.batch, regime.images, seed), of(500, TESTED, 0)


def run(regime: Regime, variant: Variant, seed: int) -> dict[str, Any]:
    data, tested = opened(regime, seed)
    torch.manual_seed(seed)
    model = slim(len(data.classes), data.sample_shape[0], regime.norm)
    optimizer = torch.optim.SGD(model.parameters(), lr=regime.lr, momentum=0.9, weight_decay=5e-4)
    example = torch.zeros(max(2, regime.batch), *data.sample_shape)
    cut, lower = lower_part(model, example, None)
    whole = regime.epochs * len(data.train)
    steps = round(whole * variant.get("epochs", 1.0))
    strategy = strategy_of(variant, regime, cut)
    spent = costs(model, example, strategy if isinstance(strategy, Speculative) else Speculative())
    skipping = skipping_of(variant, lower, optimizer, seed, steps)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, regime.lr, total_steps=steps, cycle_momentum=False)
    times, measures, losses = [], [], []
    settings = Settings(seed=seed, threads=1, total_steps=steps)
    began = time.perf_counter()
    with strategy.bind(model, nn.functional.cross_entropy, optimizer, settings=settings) as step:
        for number, (x, y) in enumerate(islice(batches(data), steps)):
            exact = skipping is None or skipping.exact
            result = step(x, y)
            schedule.step()
            if skipping is not None:
                skipping.choose(number + 1)
            if result is not None:
                losses.append(float(result.loss))
            measures.append(dict(getattr(result, "measures", {})))
            times.append(_time(spent, variant, measures[-1], exact))
        step.drain()
    return {
        "accuracy": round(100 * accuracy(model, tested), 2),
        "loss": round(fmean(losses[-len(data.train) :]), 4),
        "time": round(sum(times) / whole, 4),
        "accepted": _mean([m["accepted"] for m in measures if m.get("mode") == "speculate"]),
        "agreement": _mean([m["agreement"] for m in measures if m.get("mode") == "probe"]),
        "seconds": round(time.perf_counter() - began, 1),
    }


def batches(data: DataBundle) -> Iterator[tuple[Any, Any]]:
    """Epoch after epoch."""
    for epoch in count():
        data.train.set_epoch(epoch)
        yield from data.train


def _time(spent: Costs, variant: Variant, measures: dict[str, Any], exact: bool) -> float:
    if variant["kind"] == "delayed":
        return spent.pipelined
    if variant["kind"] == "skip":
        return spent.exact if exact else spent.skipped
    return spent.of(measures.get("mode", "exact"), measures.get("accepted", 0.0))


def _mean(values: Sequence[float]) -> float | str:
    return round(fmean(values), 4) if values else ""


def accuracy(model: nn.Module, data: DataBundle) -> float:
    model.eval()
    right = total = 0
    with torch.no_grad():
        for x, y in data.validation:
            right += int((model(x).argmax(1) == y).sum())
            total += len(y)
    return right / total


def done(path: Path) -> set[tuple[str, str, int]]:
    if not path.exists():
        return set()
    with path.open(newline="") as file:
        return {(row["regime"], row["variant"], int(row["seed"])) for row in csv.DictReader(file)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--regimes", default=",".join(REGIMES))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--only", default="", help="variants whose names contain one of these parts, parted by |")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in map(int, options.seeds.split(",")):
        for regime in options.regimes.split(","):
            for name, variant in VARIANTS.items():
                chosen = any(part in name for part in options.only.split("|"))
                if not chosen or (regime, name, seed) in done(options.out):
                    continue
                row = {"regime": regime, "variant": name, "seed": seed, **run(REGIMES[regime], variant, seed)}
                fresh = not options.out.exists()
                with options.out.open("a", newline="") as file:
                    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                    if fresh:
                        writer.writeheader()
                    writer.writerow(row)
                print(*row.values(), flush=True)


if __name__ == "__main__":
    main()
