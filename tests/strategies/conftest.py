"""A small net with BatchNorm, a skip across the cut and, where asked for, dropout; its data; and its trainer."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from convoy.strategies.base import Settings
from convoy.training.trainer import Trainer


class SkipNet(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(4 * 9, 3)

    def forward(self, x):
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)) + x)
        return self.fc(self.drop(F.max_pool2d(x, 2).flatten(1)))


def samples(count, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 2, 6, 6, generator=generator)
    return TensorDataset(x, (x.mean((1, 2, 3)) * 20).round().long().remainder(3))


@dataclass
class Parts:
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: object


@dataclass
class Run(Parts):
    trainer: Trainer
    train: DataLoader
    validation: DataLoader
    events: list

    def fit(self, epochs=3, validation=True):
        return self.trainer.fit(self.train, self.validation if validation else None, epochs=epochs)


@pytest.fixture
def parts():
    """``parts(dropout=0.0)``: equal model, optimizer and scheduler at each call."""

    def make(dropout=0.0):
        torch.manual_seed(0)
        model = SkipNet(dropout)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
        return Parts(model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 4, 0.7))

    return make


@pytest.fixture
def batches():
    """``batches(count)``: so many of 6 samples, the last of 4."""

    def make(count):
        generator = torch.Generator().manual_seed(7)
        sizes = [6] * (count - 1) + [4]
        return [
            (torch.randn(n, 2, 6, 6, generator=generator), torch.randint(0, 3, (n,), generator=generator))
            for n in sizes
        ]

    return make


@pytest.fixture
def run(parts):
    """``run(strategy, ...)``: a trainer on 6 mini-batches an epoch, not shuffled, the last of them smaller."""

    def make(strategy, *, dropout=0.3, callbacks=(), scheduler=True, settings=None, **options):
        made, events = parts(dropout), []
        trainer = Trainer(
            made.model,
            nn.CrossEntropyLoss(),
            made.optimizer,
            scheduler=made.scheduler if scheduler else None,
            scheduler_interval="batch",
            strategy=strategy,
            settings=settings or Settings(seed=3, threads=2, clip=1.0),
            callbacks=[events.append, *callbacks],
            **options,
        )
        train, validation = DataLoader(samples(34, 5), batch_size=6), DataLoader(samples(20, 6), batch_size=8)
        return Run(made.model, made.optimizer, made.scheduler, trainer, train, validation, events)

    return make


@pytest.fixture
def same(same_values):
    """``same(a, b)``: weights, estimates and optimizer state are equal, bit for bit."""

    def compare(one, other):
        for a, b in ((one.model, other.model), (one.optimizer, other.optimizer)):
            same_values(a.state_dict(), b.state_dict())

    return compare
