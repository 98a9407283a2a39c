"""Small nets for speculation, their data, and how they are trained and compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convoy.strategies.base import Settings, Strategy
from convoy.strategies.speculative import Speculative
from convoy.strategies.speculative.step import SpeculativeStep

CLASSES = 5


class Skip(nn.Module):
    """A residual block with BatchNorm below the cut, another above it, and dropout."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.inner, self.inner_norm = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.upper = nn.Conv2d(6, 6, 3, padding=1)
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(6 * 9, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.max_pool2d(F.relu(self.inner_norm(self.inner(x)) + x), 2)
        x = F.relu(self.upper(x) + x)
        logits: torch.Tensor = self.fc(self.drop(x).flatten(1))
        return logits


def plain() -> nn.Module:
    """Three convolutions without BatchNorm: samples do not depend on each other."""
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 8, 3, padding=1), nn.LeakyReLU(0.1), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(8, CLASSES)),
    )


NETS: dict[str, Callable[[], nn.Module]] = {"plain": plain, "skip": Skip, "norm": lambda: Skip(0.0)}


def make_net(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETS[name]()


def make_data(sizes: tuple[int, ...], seed: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images whose label can be seen in them, so that training gets somewhere."""
    generator = torch.Generator().manual_seed(seed)
    data = []
    for n in sizes:
        y = torch.randint(0, CLASSES, (n,), generator=generator)
        x = torch.randn(n, 3, 6, 6, generator=generator) * 0.5
        x[torch.arange(n), :, y, :] += 1.0
        data.append((x, y))
    return data


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


@dataclass
class Trained:
    """What came out: ``measures`` and ``events`` for speculative runs only."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    losses: list[float] = field(default_factory=list)
    measures: list[dict[str, Any]] = field(default_factory=list)
    events: list[Any] = field(default_factory=list)
    plan: Any = None

    @property
    def decisions(self) -> list[tuple[str, int, dict[str, Any]]]:
        return [(e.name, e.batch, dict(e.data)) for e in self.events if e.kind == "decision"]

    def differs(self, other: Trained) -> list[str]:
        """Names of what is not the same in every bit: weights, statistics, optimizer state."""
        one, two = (
            {
                **t.model.state_dict(),
                **{f"o{k}{n}": v for k, s in t.optimizer.state_dict()["state"].items() for n, v in s.items()},
            }
            for t in (self, other)
        )
        assert one.keys() == two.keys()
        return [k for k, v in one.items() if isinstance(v, torch.Tensor) and not torch.equal(v, two[k])]


def run(strategy: Strategy, net: str, data: Any, *, optimizer: Any = sgd, disturb: Any = None, threads: int = 1,
        **settings: Any) -> Trained:  # fmt: skip
    model = make_net(net)
    trained = Trained(model, optimizer(model))
    chosen, loss = Settings(**{"seed": 3, "threads": threads, **settings}), nn.CrossEntropyLoss()
    if isinstance(strategy, Speculative):
        step: Any = SpeculativeStep(
            strategy, model, loss, trained.optimizer, chosen, trained.events.append, disturb=disturb
        )
    else:
        step = strategy.bind(model, loss, trained.optimizer, settings=chosen, sink=trained.events.append)
    with step:
        for x, y in data:
            result = step(x, y)
            trained.losses.append(result.loss.item())
            trained.measures.append(dict(getattr(result, "measures", {})))
        trained.plan = step.plan()
    return trained


@pytest.fixture(scope="session")
def train() -> Callable[..., Trained]:
    """``train(strategy, net, data, optimizer=, disturb=, **settings)``."""
    return run


@pytest.fixture(scope="session")
def images() -> Callable[..., list[tuple[torch.Tensor, torch.Tensor]]]:
    """``images(sizes, seed=1)``: batches of so many images."""
    return make_data


@pytest.fixture(scope="session")
def net() -> Callable[[str], nn.Module]:
    """``net(name)``: "plain" or "skip", equal at each call."""
    return make_net
