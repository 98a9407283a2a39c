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
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from controls import FILLS, Skipping, lower_part
from cost import costs
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
    parser.add_argument("--clock", default="registers", help="of the delayed control")
    parser.add_argument("--accumulate", type=int, default=1, help="of the delayed control")
    parser.add_argument("--correction", help="of the delayed control")
    parser.add_argument("--channels-last", action="store_true", help="memory format of images: other rounding, faster")
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


@dataclass
class Tally:
    """A callback that means what a strategy says of its mini-batches, epoch by epoch, and adds up what they cost.

    ``cost`` of a mini-batch: see ``cost.py``. The sums are kept in ``path`` beside the checkpoints, for a resumed run.
    """

    KEYS: ClassVar = ("accepted", "distance", "signal_agreement", "agreement", "time_saved")

    path: Path
    cost: Callable[[dict[str, Any]], float]
    epochs: dict[int, dict[str, list[float]]] = field(default_factory=dict)
    modes: dict[int, dict[str, int]] = field(default_factory=dict)
    begun: bool = False

    def __post_init__(self) -> None:
        if self.path.exists():
            kept = json.loads(self.path.read_text())
            self.epochs = {int(epoch): row for epoch, row in kept["epochs"].items()}
            self.modes = {int(epoch): row for epoch, row in kept["modes"].items()}

    def __call__(self, event: Event) -> None:
        if event.kind == "epoch":
            self.path.write_text(json.dumps({"epochs": self.epochs, "modes": self.modes}))
        if event.kind != "step":
            return
        epoch = event.data["epoch"]
        if not self.begun:  # an epoch that was begun before and is not in the checkpoint is trained again
            self.begun = True
            self.epochs = {n: row for n, row in self.epochs.items() if n < epoch}
            self.modes = {n: row for n, row in self.modes.items() if n < epoch}
        row, modes = self.epochs.setdefault(epoch, {}), self.modes.setdefault(epoch, {})
        for key in self.KEYS:
            if key in event.data:
                row.setdefault(key, []).append(event.data[key])
        row.setdefault("cost", []).append(self.cost(event.data))
        mode = event.data.get("mode")
        if mode is not None:
            modes[mode] = modes.get(mode, 0) + 1

    def result(self, batches: int) -> dict[str, Any]:
        """``batches`` of a whole run: "modelled_time" is in units of training it on one engine."""
        means = {
            key: [round(sum(r[key]) / len(r[key]), 4) if key in r else None for _, r in sorted(self.epochs.items())]
            for key in self.KEYS
            if any(key in row for row in self.epochs.values())
        }
        modes: dict[str, int] = {}
        for row in self.modes.values():
            for mode, times in row.items():
                modes[mode] = modes.get(mode, 0) + times
        spent = sum(sum(row["cost"]) for row in self.epochs.values()) / batches
        return {"modelled_time": round(spent, 4), **means, **({"modes": modes} if modes else {})}


def strategy(options: argparse.Namespace, cut: str) -> Strategy:
    if options.variant == "delayed":
        return Pipelined(
            cuts=[cut], clock=options.clock, accumulate=options.accumulate, correction=options.correction,
            engine=options.engine,
        )  # fmt: skip
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
    example = torch.zeros(options.batch_size, *data.sample_shape)
    chosen = strategy(options, cut)
    spent = costs(model, example, chosen if isinstance(chosen, Speculative) else Speculative(), options.cut)
    callbacks: list[Skipping] = []
    if options.variant in ("untrained", "second", "skipped"):
        rate = 1.0 if options.variant == "untrained" else options.rate
        callbacks.append(
            Skipping(
                lower, optimizer, rate, options.seed, alternate=options.variant == "second",
                fill=options.fill if options.variant == "skipped" else "none", unbiased=options.unbiased,
            )
        )  # fmt: skip

    def cost(measures: dict[str, Any]) -> float:
        if options.variant == "delayed":
            return spent.pipelined
        if callbacks:
            return spent.exact if callbacks[0].exact else spent.skipped
        return spent.of(measures.get("mode", "exact"), measures.get("accepted", 0.0))

    steps = epochs * len(data.train)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=steps, cycle_momentum=False)
    name = options.out.name
    begun = any((options.work / name / "checkpoints").glob("*"))
    if not begun:
        shutil.rmtree(options.work / name, ignore_errors=True)  # stopped before its first checkpoint
    options.work.mkdir(parents=True, exist_ok=True)
    kept = options.work / f"{name}.tally.json"
    if not begun:
        kept.unlink(missing_ok=True)
    tally = Tally(kept, cost)
    trainer = Trainer(
        model,
        nn.functional.cross_entropy,
        optimizer,
        scheduler=schedule,
        scheduler_interval="batch",
        strategy=chosen,
        settings=Settings(
            seed=options.seed, threads=options.threads, total_steps=steps, channels_last=options.channels_last
        ),
        callbacks=[tally, *callbacks],
        run_dir=options.work,
        name=name,
        save_every="epoch",
    )
    if begun:
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
        **tally.result(options.epochs * len(data.train)),
        "torch": torch.__version__,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_name(f"{options.out.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
