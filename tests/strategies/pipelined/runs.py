"""Small models of every habit, and whole runs of a pipeline over a few batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convoy.events.event import Event
from convoy.graph.capture import capture
from convoy.graph.split import allowed_cuts
from convoy.schedule.action import Action
from convoy.strategies.base import Settings
from convoy.strategies.pipelined import Pipelined, planner
from convoy.strategies.pipelined.step import PipelinedStep


class Chain(nn.Sequential):
    def __init__(self, width: int, dropout: float, inplace: bool) -> None:
        super().__init__(
            nn.Conv2d(2, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=inplace),
            nn.Dropout2d(dropout) if dropout else nn.Identity(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, width, 3),
            nn.ReLU(inplace=inplace),
            nn.Flatten(),
            nn.Linear(width * 4, 6),
            nn.Dropout(dropout) if dropout else nn.Tanh(),
            nn.Linear(6, 3),
        )


class Residual(nn.Module):
    """Residual additions, written in place where ``inplace``, and a functional dropout."""

    def __init__(self, width: int, dropout: float, inplace: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, width, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.relu = nn.ReLU(inplace=inplace)
        self.head = nn.Linear(width, 3)
        self.dropout, self.inplace = dropout, inplace

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norms[0](self.stem(x)))
        for conv, norm in zip(self.convs, list(self.norms)[1:], strict=True):
            y = norm(conv(x))
            if self.inplace:
                y += x
            else:
                y = y + x
            x = self.relu(y)
        x = x.mean((2, 3))
        if self.dropout:
            x = F.dropout(x, self.dropout, self.training)
        return self.head(x)


class Dense(nn.Module):
    """Every layer reads all earlier ones."""

    def __init__(self, width: int, dropout: float, inplace: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, width, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(width * (i + 1)),
                nn.ReLU(inplace=inplace),
                nn.Conv2d(width * (i + 1), width, 3, padding=1),
                nn.Dropout(dropout) if dropout else nn.Identity(),
            )
            for i in range(3)
        )
        self.head = nn.Linear(width * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        found = [self.first(x)]
        for layer in self.layers:
            found.append(layer(torch.cat(found, 1)))
        return self.head(F.avg_pool2d(torch.cat(found, 1), 8).flatten(1))


class TwoHeads(nn.Module):
    """An early exit: the second result comes from the middle and stays in use to the end."""

    def __init__(self, width: int, dropout: float, inplace: bool) -> None:
        super().__init__()
        self.low = nn.Sequential(nn.Conv2d(2, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU(inplace))
        self.exit = nn.Linear(width * 9, 3)
        self.high = nn.Sequential(nn.Conv2d(width, width, 3), nn.Dropout(dropout), nn.ReLU(inplace), nn.Flatten())
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        low = self.low(x)
        early = self.exit(low.flatten(1))
        return self.head(self.high(low)), early


MODELS: dict[str, Callable[..., nn.Module]] = {c.__name__: c for c in (Chain, Residual, Dense, TwoHeads)}

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05),
    "momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-2, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 0.01, weight_decay=1e-3, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01),
}


def loss(output: Any, target: Tensor) -> Tensor:
    if isinstance(output, tuple):
        return F.cross_entropy(output[0], target) + 0.3 * F.cross_entropy(output[1], target)
    return F.cross_entropy(output, target)


def batches(sizes: Sequence[int], seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, 2, 8, 8, generator=draw), torch.randint(3, (n,), generator=draw)) for n in sizes]


@dataclass
class Outcome:
    """All that a run leaves behind."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    losses: list[Tensor]
    order: list[int]
    outputs: list[Any]
    events: list[Event] = field(default_factory=list)
    delays: tuple[int, ...] = ()


def jitter(seed: int) -> Callable[[str, Action], None]:
    """Workers that sleep for a random while before some of their actions."""
    random = Random(seed)

    def disturb(lane: str, action: Action) -> None:
        if random.random() < 0.3:
            time.sleep(random.random() / 500)

    return disturb


def train(
    build: Callable[[], nn.Module],
    sizes: Sequence[int],
    *,
    cut_at: Sequence[float] | None = None,
    optimizer: str = "momentum",
    schedule: bool = False,
    drains: Sequence[int] = (),
    jitter_seed: int | None = None,
    settings: Settings | None = None,
    seed: int = 0,
    **options: Any,
) -> Outcome:
    """Train a fresh model. ``cut_at``: where to cut, as shares of all places where the graph can be cut."""
    torch.manual_seed(seed)
    model = build()
    chosen = OPTIMIZERS[optimizer](model.parameters())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(chosen, len(sizes) + 1) if schedule else None
    data = batches(sizes, seed)
    if cut_at is not None:
        graph = capture(model, (data[0][0],))
        places = allowed_cuts(graph)
        wanted = sorted({places[int(share * (len(places) - 1e-9))] for share in cut_at})
        options["stages"] = len(wanted) + 1
        if "slack" in options:
            options["slack"] = min(options["slack"], len(wanted))
    events: list[Event] = []
    step = PipelinedStep(
        Pipelined(**options),
        model,
        loss,
        chosen,
        settings or Settings(channels_last=False, watchdog_seconds=20),
        events.append,
        disturb=None if jitter_seed is None else jitter(jitter_seed),
    )
    found = []
    original = planner.positions
    try:
        if cut_at is not None:
            planner.positions = lambda strategy, graph: wanted
        with step:
            for t, (x, y) in enumerate(data):
                if t in drains:
                    found += step.drain()
                found.append(step(x, y))
                if scheduler is not None:
                    scheduler.step()
            found += step.drain()
    finally:
        planner.positions = original
    results = [r for r in found if r is not None]
    plan = step.plan()
    assert plan is not None
    return Outcome(
        {name: t.detach().clone() for name, t in model.state_dict().items()},
        chosen.state_dict(),
        [r.loss for r in results],
        [r.batch for r in results],
        [r.output for r in results],
        events,
        plan.delays,
    )


def same(a: Any, b: Any, where: str = "") -> None:
    """Bit for bit, through nested containers."""
    if isinstance(a, Tensor):
        assert isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b), f"{where} differs"
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            same(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (one, other) in enumerate(zip(a, b, strict=True)):
            same(one, other, f"{where}[{i}]")
    else:
        assert a == b, f"{where}: {a!r} and {b!r}"


def same_outcome(a: Outcome, b: Outcome) -> None:
    for name in ("order", "losses", "outputs", "weights", "optimizer"):
        same(getattr(a, name), getattr(b, name), name)
