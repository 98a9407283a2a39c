"""A tiny net and data by seed, and comparisons made of numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from convoy.comparison import Comparison, Workload
from convoy.training.history import EpochRecord


def make_workload(seed: int, **more: Any) -> Workload:
    """Initial weights, order and dropout come from the global generator, the data from the seed."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(4 * 36, 3)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 1, 8, 8, generator=generator)
    y = (x.mean((1, 2, 3)) * 20).round().long().remainder(3)
    train = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)
    validation = DataLoader(TensorDataset(x[:16], y[:16]), batch_size=8)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
    parts = {"model": model, "loss": nn.CrossEntropyLoss(), "optimizer": optimizer, "train": train}
    return Workload(**{**parts, "validation": validation, "scheduler": scheduler, **more})


@pytest.fixture
def workload() -> Callable[..., Workload]:
    return make_workload


@pytest.fixture
def numbers() -> Callable[..., Comparison]:
    """``numbers(a=[[(seconds, accuracy), …] per seed], b=…)``."""

    def make(target: float | None = None, **strategies: Any) -> Comparison:
        seeds = max(map(len, strategies.values()))
        made = Comparison("t", {name: {"name": name} for name in strategies}, {"epochs": 3}, list(range(seeds)), target)
        for name, runs in strategies.items():
            for seed, epochs in enumerate(runs):
                outcome = made.outcome(name, seed)
                outcome.status = "finished"
                outcome.epochs = [
                    EpochRecord(
                        epoch=i,
                        train_loss=1 / i,
                        validation_accuracy=a,
                        seconds=s,
                        samples=10,
                        samples_per_second=10 / s,
                        began=i == 1,
                    )
                    for i, (s, a) in enumerate(epochs, 1)
                ]
        return made

    return make
