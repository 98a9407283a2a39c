"""What does each flaw of the published rules cost? LeNet-5 on the digits, three nodes of speeds 2, 1, 1, paired seeds.

    python docs/lab/bilayered_digits.py --seeds 3 --epochs 10
    python docs/lab/bilayered_digits.py --data mnist --limit 12000 --nodes 2,1 --rounds pass --lr 0.02 --epochs 8
    python docs/lab/bilayered_digits.py --data cifar10 --net resnet20 --channels-last --limit 20000 --nodes 2,1 \\
        --rounds pass --updates agwu-mended,sgwu-mended,agwu,sgwu --seeds 1 --epochs 6

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

UPDATES = ("agwu", "agwu-mended", "sgwu", "sgwu-mended", "local-sgd")


def strategies(nodes: str, rounds: str, updates: str) -> dict[str, Any]:
    speeds = tuple(map(float, nodes.split(",")))
    found: dict[str, Any] = {"sequential": Sequential()}
    for update in updates.split(","):
        for size in rounds.split(","):
            length = size if size == "pass" else int(size)
            found[f"{update}, {size}"] = BiLayered(nodes=speeds, update=update, round=length)
    return found


def accuracy(strategy: Any, seed: int, asked: argparse.Namespace) -> float | str:
    data = open_data(asked.data, batch_size=32, seed=seed, limit=asked.limit)
    model = build(asked.net, channels=data.sample_shape[0], image_size=data.sample_shape[1], seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=asked.lr, momentum=0.9, weight_decay=asked.weight_decay)
    steps = asked.epochs * len(data.train)
    trainer = Trainer(
        model,
        nn.CrossEntropyLoss(),
        optimizer,
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps),
        scheduler_interval="batch",
        strategy=strategy,
        settings=Settings(seed=seed, threads=1, channels_last=asked.channels_last),
    )
    try:
        history = trainer.fit(data.train, data.validation, epochs=asked.epochs)
    except ConvoyError as error:
        return type(error).__name__
    return round(100 * (history.last.validation_accuracy or 0.0), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--limit", type=int, default=None, help="use only so many training images")
    parser.add_argument("--net", default="lenet5")
    parser.add_argument("--nodes", default="2,1,1", help="their speeds")
    parser.add_argument("--rounds", default="pass,4,1", help="what is trained between two pushes")
    parser.add_argument("--updates", default=",".join(UPDATES))
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    asked = parser.parse_args()
    rows: dict[str, list[float | str]] = {}
    for name, strategy in strategies(asked.nodes, asked.rounds, asked.updates).items():
        rows[name] = [accuracy(strategy, seed, asked) for seed in range(asked.seeds)]
        known = [value for value in rows[name] if not isinstance(value, str)]
        print(f"{name:20s}", f"{mean(known):6.2f}" if known else "     –", rows[name], flush=True)
    print(json.dumps({**vars(asked), "accuracy": rows}))


if __name__ == "__main__":
    main()
