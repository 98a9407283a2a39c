"""What does each flaw of the published rules cost? LeNet-5 on the digits, three nodes of speeds 2, 1, 1, paired seeds.

    python docs/lab/bilayered_digits.py --seeds 3 --epochs 10

Replicas in virtual time, so the numbers do not depend on the machine's load. Prints validation accuracy, one JSON line
last.
"""

from __future__ import annotations

import argparse
import json
from statistics import mean
from typing import Any

import torch
from torch import nn

from convoy import BiLayered, ConvoyError, Sequential, Settings, Trainer, open_data
from convoy.models import build

STRATEGIES: dict[str, Any] = {"sequential": Sequential()}
for update in ("agwu", "agwu-mended", "sgwu", "sgwu-mended", "local-sgd"):
    for size in ("pass", 4, 1):
        STRATEGIES[f"{update}, {size}"] = BiLayered(nodes=(2, 1, 1), update=update, round=size)


def accuracy(strategy: Any, seed: int, epochs: int) -> float | str:
    data = open_data("digits", batch_size=32, seed=seed)
    model = build("lenet5", channels=1, image_size=28, seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs * len(data.train))
    trainer = Trainer(
        model,
        nn.CrossEntropyLoss(),
        optimizer,
        scheduler=scheduler,
        scheduler_interval="batch",
        strategy=strategy,
        settings=Settings(seed=seed, threads=1),
    )
    try:
        history = trainer.fit(data.train, data.validation, epochs=epochs)
    except ConvoyError as error:
        return type(error).__name__
    return 100 * (history.last.validation_accuracy or 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    asked = parser.parse_args()
    rows: dict[str, list[float | str]] = {}
    for name, strategy in STRATEGIES.items():
        rows[name] = [accuracy(strategy, seed, asked.epochs) for seed in range(asked.seeds)]
        known = [value for value in rows[name] if not isinstance(value, str)]
        print(f"{name:20s}", f"{mean(known):6.2f}" if known else "     –", rows[name], flush=True)
    print(json.dumps({"epochs": asked.epochs, "accuracy": rows}))


if __name__ == "__main__":
    main()
