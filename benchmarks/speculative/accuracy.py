"""Does speculation reach the accuracy of exact training, and of what is as cheap? Test accuracy after every epoch.

    python benchmarks/speculative/accuracy.py --variant sequential --epochs 30 --out results/plain6-sequential
    python benchmarks/speculative/accuracy.py --variant speculative --form faithful --threshold 0.5 --out results/…
    python benchmarks/speculative/accuracy.py --variant skipped --rate 0.5 --fill ema --unbiased --out results/…

One variant a call, same seed, same start, same data order. The run keeps checkpoints under --work and goes on where it
stopped; the result is a small JSON file, and its content the last line printed.

Variants: sequential, speculative, and the controls: untrained (a: the lower part stays as it was), second (b: it trains
on every second mini-batch), short (c: 66 % of the epochs), delayed (d: true gradients, one step late, by a pipeline of
two stages), skipped (e: it trains on a share of mini-batches drawn by chance; f: with --fill zero, last or ema).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from controls import FILLS, Skipping, lower_part
from torch import nn

from convoy.data import open_data
from convoy.events.event import Event
from convoy.models import build
from convoy.strategies.base import Settings, Strategy
from convoy.strategies.pipelined import Pipelined
from convoy.strategies.sequential import Sequential
from convoy.strategies.speculative import Speculative
from convoy.training.trainer import Trainer

VARIANTS = ("sequential", "speculative", "untrained", "second", "short", "delayed", "skipped")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="plain6")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--augment", choices=("default", "none"), default="default")
    parser.add_argument("--variant", choices=VARIANTS, required=True)
    parser.add_argument("--form", default="cut")
    parser.add_argument("--cut", help="module or layer number; of the controls too")
    parser.add_argument("--predictor")
    parser.add_argument("--threshold", type=float)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--controller", default="always:32")
    parser.add_argument("--memory", type=int, default=256_000_000)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--rate", type=float, default=0.5, help="of skipped mini-batches")
    parser.add_argument("--fill", choices=FILLS, default="none")
    parser.add_argument("--unbiased", action="store_true")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.05, help="the highest rate of the one-cycle schedule")
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--limit", type=int, default=None, help="use only so many training images")
    parser.add_argument("--out", type=Path, required=True, help="result file without ending, under this folder")
    parser.add_argument("--work", type=Path, default=Path("runs/speculative"), help="where checkpoints go")
    options = parser.parse_args()
    if options.cut is not None and options.cut.isdecimal():
        options.cut = int(options.cut)
    return options


class Tally:
    """A callback that means what a strategy says of its mini-batches, epoch by epoch."""

    KEYS = ("accepted", "distance", "signal_agreement", "agreement", "time_saved")

    def __init__(self) -> None:
        self.epochs: dict[int, dict[str, list[float]]] = {}
        self.modes: dict[str, int] = {}

    def __call__(self, event: Event) -> None:
        if event.kind != "step":
            return
        row = self.epochs.setdefault(event.data["epoch"], {})
        for key in self.KEYS:
            if key in event.data:
                row.setdefault(key, []).append(event.data[key])
        mode = event.data.get("mode")
        if mode is not None:
            self.modes[mode] = self.modes.get(mode, 0) + 1

    def result(self) -> dict[str, Any]:
        means = {
            key: [round(sum(r[key]) / len(r[key]), 4) if key in r else None for _, r in sorted(self.epochs.items())]
            for key in self.KEYS
            if any(key in row for row in self.epochs.values())
        }
        return {**means, "modes": self.modes} if self.modes else {}


def strategy(options: argparse.Namespace, cut: str) -> Strategy:
    if options.variant == "delayed":
        return Pipelined(cuts=[cut])
    if options.variant != "speculative":
        return Sequential()
    return Speculative(
        form=options.form, cut=options.cut, predictor=options.predictor, threshold=options.threshold,
        warmup=options.warmup, controller=options.controller, memory=options.memory, engine=options.engine,
    )  # fmt: skip


def main() -> None:
    options = arguments()
    epochs = max(1, round(0.66 * options.epochs)) if options.variant == "short" else options.epochs
    augment = None if options.augment == "default" else False
    data = open_data(
        options.data, batch_size=options.batch_size, seed=options.seed, limit=options.limit, augment=augment
    )
    channels, image_size = data.sample_shape[0], data.sample_shape[1]
    torch.manual_seed(options.seed)
    model = build(options.net, classes=len(data.classes), channels=channels, image_size=image_size)
    optimizer = torch.optim.SGD(model.parameters(), lr=options.lr, momentum=0.9, weight_decay=options.weight_decay)
    cut, lower = lower_part(model, torch.zeros(2, *data.sample_shape), options.cut)
    tally, callbacks = Tally(), []
    if options.variant in ("untrained", "second", "skipped"):
        rate = 1.0 if options.variant == "untrained" else options.rate
        callbacks.append(
            Skipping(
                lower, optimizer, rate, options.seed, alternate=options.variant == "second",
                fill=options.fill if options.variant == "skipped" else "none", unbiased=options.unbiased,
            )
        )  # fmt: skip
    steps = epochs * len(data.train)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=steps, cycle_momentum=False)
    name = options.out.name
    trainer = Trainer(
        model,
        nn.functional.cross_entropy,
        optimizer,
        scheduler=schedule,
        scheduler_interval="batch",
        strategy=strategy(options, cut),
        settings=Settings(seed=options.seed, threads=options.threads, total_steps=steps),
        callbacks=[tally, *callbacks],
        run_dir=options.work,
        name=name,
        save_every="epoch",
    )
    if (options.work / name / "checkpoints").is_dir():
        trainer.load(options.work / name)
    history = trainer.fit(data.train, data.validation, epochs=epochs)
    result: dict[str, Any] = {
        "command": "python benchmarks/speculative/accuracy.py " + " ".join(sys.argv[1:]),
        "variant": name,
        "seed": options.seed,
        "cut": cut,
        "accuracy": [round(100 * (record.validation_accuracy or 0.0), 2) for record in history],
        "train_loss": [round(record.train_loss, 4) for record in history],
        "seconds": [round(record.seconds, 1) for record in history],
        **tally.result(),
        "torch": torch.__version__,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
