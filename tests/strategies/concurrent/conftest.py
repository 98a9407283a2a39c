"""Networks with several groups of channels in each layer, and training them beside the plain loop."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convoy.models import build
from convoy.strategies.base import Settings
from convoy.strategies.concurrent import groups as grouping
from convoy.strategies.concurrent.step import ConcurrentStep


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """Cut layers of two channels a group too, so that small networks have groups."""
    monkeypatch.setattr(grouping, "CHANNELS_PER_GROUP", 2)


class Dense(nn.Module):
    """Two layers whose inputs are all that was made before, then a transition that halves channels and pixels."""

    def __init__(self, width=8, dropout=0.0):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width * (i + 1)) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(width * (i + 1), width, 3, padding=1, bias=False) for i in range(2))
        self.transition = nn.Conv2d(3 * width, width, 1)
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(width, 5)

    def forward(self, x):
        made = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=False):
            made.append(self.drop(conv(F.relu(norm(torch.cat(made, 1))))))
        x = self.transition(F.relu(self.norms[2](torch.cat(made, 1))))
        return self.fc(F.adaptive_avg_pool2d(F.avg_pool2d(x, 2), 1).flatten(1))


class Bottleneck(nn.Module):
    """1 × 1, 3 × 3, 1 × 1 with BatchNorm and a projection; a depthwise layer; a product that has no rule."""

    def __init__(self, width=8):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.first = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU6())
        self.branch = nn.Sequential(
            nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, stride=2, padding=1, groups=width, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 1, bias=False), nn.BatchNorm2d(2 * width, momentum=None),
        )  # fmt: skip
        self.project = nn.Sequential(nn.Conv2d(width, 2 * width, 1, stride=2), nn.BatchNorm2d(2 * width))
        self.gate = nn.Linear(2 * width, 2 * width)
        self.fc = nn.Linear(2 * width, 5)

    def forward(self, x):
        x = self.first(self.stem(x))
        x = F.relu(self.branch(x) + self.project(x))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]
        return self.fc(x.mean((2, 3)))


MAKERS = {
    "vgg": lambda dropout: nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8),
        nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(dropout), nn.Linear(64, 5),
    ),
    "resnet": lambda dropout: build("resnet20", classes=5, image_size=8, seed=0),
    "dense": lambda dropout: Dense(dropout=dropout),
    "bottleneck": lambda dropout: Bottleneck(),
}  # fmt: skip


@pytest.fixture
def make():
    """``make("vgg")``: equal at each call."""

    def made(name, dropout=0.0):
        torch.manual_seed(0)
        return MAKERS[name](dropout)

    return made


@pytest.fixture
def images():
    """``images(sizes)``: batches of so many images of 8 × 8 pixels."""

    def made(sizes, dtype=torch.float64):
        generator = torch.Generator().manual_seed(1)
        return [
            (
                torch.randn(n, 3, 8, 8, generator=generator, dtype=torch.float64).to(dtype),
                torch.randint(0, 5, (n,), generator=generator),
            )
            for n in sizes
        ]

    return made


def _optimizer(model):
    return torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9, weight_decay=1e-3, nesterov=True
    )


def _results(losses, model, optimizer):
    """What training made, by name: losses, weights, running statistics, momenta."""
    found = {f"loss {number}": loss for number, loss in enumerate(losses)}
    found |= model.state_dict()
    state = optimizer.state_dict()["state"]
    return found | {f"momentum {number}": state[number]["momentum_buffer"] for number in sorted(state)}


@pytest.fixture
def plain():
    """``plain(model, data)``: a copy trained by the loop as one would write it."""

    def run(model, data, clip=None):
        model = copy.deepcopy(model).to(memory_format=torch.channels_last)
        optimizer, losses = _optimizer(model), []
        for x, y in data:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x.to(memory_format=torch.channels_last)), y)
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            losses.append(loss.detach())
        return _results(losses, model, optimizer)

    return run


@pytest.fixture
def concurrent():
    """``concurrent(model, data, groups=2, ...)``: a copy trained by the strategy, and its step."""

    def run(model, data, groups=2, placement="planned", engine="threads", threads=2, **options):
        model = copy.deepcopy(model)
        optimizer = _optimizer(model)
        own = {k: options.pop(k) for k in ("disturb", "keep_schedule", "accelerator", "sink") if k in options}
        sink = own.pop("sink", None)
        chosen = Settings(threads=threads, **options)
        step = ConcurrentStep(
            model, F.cross_entropy, optimizer, chosen, sink, groups=groups, placement=placement, engine=engine, **own
        )
        with step:
            losses = [step(x, y).loss for x, y in data]
        return _results(losses, model, optimizer), step

    return run


@pytest.fixture
def differing():
    """``differing(a, b)``: names of what differs in any bit."""

    def names(one, other):
        assert one.keys() == other.keys()
        return [name for name, value in one.items() if not torch.equal(value, other[name])]

    return names
