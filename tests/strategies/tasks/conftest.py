"""Training by tasks beside the plain loop, from the same start on the same batches."""

import copy

import pytest
import torch
from torch import nn

from convoy.strategies.base import Settings
from convoy.strategies.tasks.step import TaskStep


def _plain(model, optimizer, data, *, loss=None, clip=None, channels_last=True, scheduler=None):
    """The loop as one would write it."""
    loss = loss or nn.CrossEntropyLoss()
    if channels_last:
        model.to(memory_format=torch.channels_last)
    losses = []
    for x, y in data:
        if channels_last and isinstance(x, torch.Tensor) and x.dim() == 4:
            x = x.to(memory_format=torch.channels_last)
        optimizer.zero_grad()
        value = loss(model(x), y)
        value.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        losses.append(value.detach())
    return losses


def _tasks(model, optimizer, data, *, loss=None, scheduler=None, engine=None, disturb=None, **settings):
    chosen = Settings(**{"threads": 1, **settings})
    losses = []
    with TaskStep(model, loss or nn.CrossEntropyLoss(), optimizer, chosen, None, engine=engine, disturb=disturb) as s:
        for x, y in data:
            losses.append(s(x, y).loss)
            if scheduler is not None:
                scheduler.step()
    return losses


def _sgd(model):
    return torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9, weight_decay=1e-3, nesterov=True
    )


def _states(model, optimizer):
    yield from model.state_dict().items()
    for number, state in optimizer.state_dict()["state"].items():
        yield from ((f"optimizer {number} {key}", value) for key, value in state.items())


def _same(model, optimizer, other, other_optimizer):
    """Names of what differs between two trained models, in any bit."""
    one, two = dict(_states(model, optimizer)), dict(_states(other, other_optimizer))
    assert one.keys() == two.keys()
    return [k for k, v in one.items() if isinstance(v, torch.Tensor) and not torch.equal(v, two[k])]


@pytest.fixture
def plain():
    return _plain


@pytest.fixture
def tasks():
    return _tasks


@pytest.fixture
def differing():
    return _same


@pytest.fixture
def both(plain, tasks, differing):
    """``both(model, data, optimizer=..., **settings)``: trains copies both ways; the losses and what differs."""

    def run(model, data, optimizer=_sgd, scheduler=None, loss=None, **settings):
        other = copy.deepcopy(model)
        mine, theirs = optimizer(model), optimizer(other)
        theirs_scheduler, mine_scheduler = (scheduler(o) if scheduler else None for o in (theirs, mine))
        known = {k: settings[k] for k in ("clip", "channels_last") if k in settings}
        expected = plain(other, theirs, data, loss=loss, scheduler=theirs_scheduler, **known)
        got = tasks(model, mine, data, loss=loss, scheduler=mine_scheduler, **settings)
        assert [v.item() for v in got] == [v.item() for v in expected]
        return differing(model, mine, other, theirs)

    return run


@pytest.fixture
def images():
    """``images(sizes, channels, size, classes)``: batches of so many images each."""

    def make(sizes, channels=3, size=8, classes=5, dtype=torch.float32):
        generator = torch.Generator().manual_seed(1)
        return [
            (
                torch.randn(n, channels, size, size, generator=generator, dtype=torch.float64).to(dtype),
                torch.randint(0, classes, (n,), generator=generator),
            )
            for n in sizes
        ]

    return make


@pytest.fixture
def small_net():
    """``small_net()``: convolution, BatchNorm, ReLU, linear; equal at each call."""

    def make(channels=3, size=8, classes=5):
        torch.manual_seed(0)
        net = nn.Sequential()
        net.add_module("conv", nn.Conv2d(channels, 6, 3))
        net.add_module("bn", nn.BatchNorm2d(6))
        net.add_module("relu", nn.ReLU())
        net.add_module("flat", nn.Flatten())
        net.add_module("fc", nn.Linear(6 * (size - 2) ** 2, classes))
        return net

    return make
