"""A tiny net, its data, and a strategy with mini-batches in flight."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from convoy.strategies.base import Settings, Strategy
from convoy.training.trainer import Trainer


class TinyNet(nn.Module):
    """LeNet in small, with BatchNorm and, where asked for, dropout."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(4 * 9, 3)

    def forward(self, x):
        return self.fc(self.drop(self.features(x).flatten(1)))


OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
}

SCHEDULERS = {
    None: lambda o: None,
    "multistep": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [1, 3], gamma=0.3),
    "onecycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=100),
    "plateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "sequence": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=5), torch.optim.lr_scheduler.CosineAnnealingLR(o, 30)],
        [5],
    ),
}


@dataclass(frozen=True)
class Delayed(Strategy):
    """Updates ``depth`` batches late, as a pipeline does: gradients of old weights, and results that come later."""

    name: ClassVar[str] = "delayed"
    depth: int = 2
    ready: bool = True

    def bind(self, model, loss, optimizer, *, settings=None, sink=None):
        return DelayedStep(self, model, loss, optimizer)


@dataclass
class LateResult:
    batch: int
    value: torch.Tensor
    output: torch.Tensor
    target: torch.Tensor
    ready: bool
    reads: list

    @property
    def loss(self):
        self.reads.append(self.batch)
        return self.value


class DelayedStep:
    bound: ClassVar[list] = []

    def __init__(self, options, model, loss, optimizer):
        self.options, self.model, self.loss, self.optimizer = options, model, loss, optimizer
        self.flight, self.batch, self.closed, self.drains, self.reads, self.epochs = [], 0, 0, [], [], []
        self.updates = []  # (batch, learning rate recorded when it entered)
        DelayedStep.bound.append(self)

    def __call__(self, x, y):
        output = self.model(x)
        loss = self.loss(output, y)
        gradients = torch.autograd.grad(loss, list(self.model.parameters()))
        rates = [group["lr"] for group in self.optimizer.param_groups]
        ready = self.options.ready
        result = LateResult(self.batch, loss.detach(), output.detach(), y, ready, self.reads)
        self.flight.append((result, gradients, rates))
        self.batch += 1
        return self._land() if len(self.flight) > self.options.depth else None

    def _land(self):
        result, gradients, rates = self.flight.pop(0)
        for parameter, gradient in zip(self.model.parameters(), gradients, strict=True):
            parameter.grad = gradient
        now = [group["lr"] for group in self.optimizer.param_groups]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self.updates.append((result.batch, rates[0]))
        self.optimizer.step()
        for group, rate in zip(self.optimizer.param_groups, now, strict=True):
            group["lr"] = rate
        return result

    def begin_epoch(self, epoch, epochs, batches=None):
        self.epochs.append((self.batch, epoch, epochs, batches))

    def end_epoch(self, *, validation_accuracy=None, validation_loss=None):
        self.epochs.append((self.batch, validation_accuracy, validation_loss))

    def drain(self):
        self.drains.append((self.batch, len(self.flight)))
        landed = []
        while self.flight:
            landed.append(self._land())
        return landed

    def close(self):
        self.closed += 1

    def state(self):
        assert not self.flight, "state() is for right after a drain"
        return {"batch": self.batch}

    def restore(self, state):
        self.batch = state["batch"]

    def plan(self):
        return {"depth": self.options.depth}

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.drain()
        self.close()


@dataclass
class Parts:
    """A trainer and what it was made of."""

    trainer: Trainer
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: object
    train: DataLoader
    validation: DataLoader
    events: list


def data(samples=44, seed=5):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 2, 8, 8, generator=generator)
    return TensorDataset(x, (x.mean((1, 2, 3)) * 20).round().long().remainder(3))


@pytest.fixture
def build():
    """``build(...)``: equal parts from equal arguments, whatever happened to the global generators before."""

    def make(*, optimizer="momentum", scheduler=None, dropout=0.0, loader=None, seed=0, samples=44, **options):
        torch.manual_seed(seed)
        model = TinyNet(dropout)
        chosen = OPTIMIZERS[optimizer](model.parameters())
        rate = SCHEDULERS[scheduler](chosen)
        events = []
        options.setdefault("settings", Settings(seed=seed))
        options.setdefault("callbacks", []).append(events.append)
        if scheduler in ("onecycle", "sequence"):
            options.setdefault("scheduler_interval", "batch")
        trainer = Trainer(model, nn.CrossEntropyLoss(), chosen, scheduler=rate, **options)
        train = loader(seed) if loader is not None else DataLoader(data(samples), batch_size=8, shuffle=True)
        validation = DataLoader(data(20, seed=6), batch_size=8)
        return Parts(trainer, model, chosen, rate, train, validation, events)

    return make


@pytest.fixture
def delayed():
    """The strategy with batches in flight, and the steps that were bound of it."""
    DelayedStep.bound.clear()
    return Delayed, DelayedStep.bound


@pytest.fixture
def same_state(same_values):
    """``same_state(a, b)``: weights, buffers, optimizer, scheduler and history are equal, bit for bit."""

    def timeless(history):
        clock = ("seconds", "samples_per_second", "busy", "began")
        values = history.to_dict()
        return {**values, "epochs": [{k: v for k, v in e.items() if k not in clock} for e in values["epochs"]]}

    def same(one, other):
        same_values(one.model.state_dict(), other.model.state_dict())
        same_values(one.optimizer.state_dict(), other.optimizer.state_dict())
        if one.scheduler is not None:
            same_values(one.scheduler.state_dict(), other.scheduler.state_dict())
        same_values(timeless(one.trainer.history), timeless(other.trainer.history))

    return same
