"""Does staleness alone make a network diverge that trains well sequentially? See README.md beside this file."""

from __future__ import annotations

import json

import torch
from torch import nn

from convoy import Pipelined, Sequential, Trainer, open_data


class Net(nn.Module):
    """Only the first convolution is normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.left = nn.Conv2d(16, 16, 3, padding=1)
        self.right = nn.Conv2d(16, 32, 3, padding=1)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(32 * 7 * 7, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.left(x)
        x = torch.relu(self.right(nn.functional.max_pool2d(x, 2)))
        return self.head(self.drop(nn.functional.max_pool2d(x, 2).flatten(1)))


found = {}
for lr in (0.02, 0.005):
    for name, strategy in (
        ("sequential", Sequential()),
        ("registers", Pipelined(cuts=["right"])),
        ("1f1b", Pipelined(cuts=["right"], clock="1f1b")),
        ("1f1b, accumulate 4", Pipelined(cuts=["right"], clock="1f1b", accumulate=4)),
    ):
        data = open_data("digits", batch_size=32)
        torch.manual_seed(0)
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
        history = Trainer(model, nn.CrossEntropyLoss(), optimizer, strategy=strategy).fit(
            data.train, data.validation, epochs=3
        )
        found[f"{name}, lr {lr}"] = [round(100 * (r.validation_accuracy or 0), 1) for r in history.epochs]
print(json.dumps(found))
