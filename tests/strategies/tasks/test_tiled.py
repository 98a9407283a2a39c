"""Tiles: the numbers of the plain loop but for the last digits, and the same bits whoever computes which tile when."""

import copy
import random
import time

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from convoy.models import build
from convoy.strategies.base import Settings
from convoy.strategies.tasks import tiles as cutting
from convoy.strategies.tasks.step import TaskStep

CLOSE = {"rtol": 1e-9, "atol": 1e-10}
"""Of float64 after some updates: tiles add up in another order than the whole."""


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    """Cut what is small too."""
    monkeypatch.setattr(cutting, "TINY_SECONDS", 0.0)
    monkeypatch.setattr(cutting, "CHANNELS_PER_TILE", 1)


def sgd(model):
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9, weight_decay=1e-3)


def trained(model, data, tiles, workers=2, engine="pool", disturb=None, **options):
    """Losses, states of model and optimizer, and the schedule."""
    optimizer = sgd(model)
    chosen = Settings(threads=workers, **options)
    step = TaskStep(model, F.cross_entropy, optimizer, chosen, None, engine=engine, tiles=tiles, disturb=disturb,
                    keep_schedule=True)  # fmt: skip
    with step:
        losses = [step(x, y).loss for x, y in data]
    return [*losses, *states(model, optimizer)], step


def states(model, optimizer):
    """Of the model, then momenta in the order of the parameters."""
    momenta = optimizer.state_dict()["state"]
    return [*model.state_dict().values(), *(momenta[number]["momentum_buffer"] for number in sorted(momenta))]


class Dense(nn.Module):
    """Concatenation, a skip, pooling, dropout, a depthwise and a grouped convolution."""

    def __init__(self, width=4, dropout=0.0):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.grow = nn.Conv2d(width, width, 3, padding=1, groups=2)
        self.bottom = nn.BatchNorm2d(2 * width, momentum=None)
        self.wise = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width, bias=False)
        self.drop = nn.Dropout(dropout)
        self.point = nn.Conv2d(2 * width, 2 * width, 1)
        self.fc = nn.Linear(2 * width, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = torch.cat([x, self.grow(x)], 1)
        x = F.silu(self.bottom(x))
        x = x + self.point(self.drop(F.relu(self.wise(x))))
        return self.fc(F.adaptive_avg_pool2d(F.max_pool2d(x, 2), 1).flatten(1))


MODELS = {
    "dense": lambda: Dense(),
    "resnet20": lambda: build("resnet20", classes=5, image_size=8, seed=0),
    "vgg16": lambda: build("vgg16", classes=5, image_size=32, dropout=0.0, seed=0),
    "wide": lambda: nn.Sequential(  # weights that outweigh the images: by channels
        nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(64, 64, 3, padding=1),
        nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.Flatten(), nn.Linear(256, 64), nn.Linear(64, 5),
    ),
}  # fmt: skip


@pytest.mark.parametrize("tiles", [2, 3])
@pytest.mark.parametrize("name", MODELS)
def test_close_to_the_plain_loop(images, plain, name, tiles):
    torch.manual_seed(0)
    model = MODELS[name]().double()
    other = copy.deepcopy(model)
    data = images([5, 5, 4] if name != "vgg16" else [3, 3], 3, 32 if name == "vgg16" else 8, 5, torch.float64)
    theirs = sgd(other)
    losses = plain(other, theirs, data)
    expected = [*losses, *states(other, theirs)]
    got, step = trained(model, data, tiles)
    assert sum(u.tiles != "whole" for u in step.plan().units) >= 3
    for mine, their in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, their, **CLOSE)


@pytest.mark.parametrize("name", ["dense", "resnet20", "wide"])
def test_fused_but_whole_layers_keep_the_bits_of_the_plain_loop(images, plain, name):
    """Also where a task works in the memory of what came before."""
    torch.manual_seed(0)
    model, data = MODELS[name](), images([5, 4])
    other = copy.deepcopy(model)
    theirs = sgd(other)
    expected = [*plain(other, theirs, data), *states(other, theirs)]
    got, step = trained(model, data, 1)
    assert step.plan().actions < 2 * len(step.plan().units), "something was fused"
    assert all(torch.equal(mine, their) for mine, their in zip(got, expected, strict=True))


def test_wide_layers_go_by_channels_and_others_by_slices(images):
    torch.manual_seed(0)
    _, step = trained(MODELS["wide"](), images([5]), 2)
    kinds = [u.tiles for u in step.plan().units]
    assert "2 by channels" in kinds and "2 slices" in kinds
    assert "2 slices" in step.plan().table()


@settings(max_examples=12)
@given(st.sampled_from(["dense", "wide"]), st.integers(2, 4), st.integers(1, 3), st.sampled_from([0.0, 0.3]), st.data())
def test_bits_depend_neither_on_workers_nor_on_delays(images, name, tiles, workers, dropout, drawn):
    torch.manual_seed(0)
    model = Dense(dropout=dropout) if name == "dense" else MODELS[name]()
    sizes = drawn.draw(st.lists(st.integers(2, 6), min_size=1, max_size=2))
    clip = drawn.draw(st.sampled_from([None, 0.1]))
    delays = random.Random(drawn.draw(st.integers(0, 99)))
    data = images(sizes)
    expected, _ = trained(copy.deepcopy(model), data, tiles, engine="inline", clip=clip)
    got, _ = trained(
        model, data, tiles, workers, clip=clip, disturb=lambda lane, action: time.sleep(delays.random() * 5e-4)
    )
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_a_dropout_keeps_its_mask_whatever_the_tiles(images):
    torch.manual_seed(0)
    model = Dense(dropout=0.5).double()
    data = images([6, 6], dtype=torch.float64)
    expected, _ = trained(copy.deepcopy(model), data, 1, workers=1)
    got, _ = trained(model, data, 3)
    for mine, their in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, their, **CLOSE)


def test_a_smaller_last_batch_and_one_of_fewer_samples_than_tiles(images, plain):
    torch.manual_seed(0)
    model = Dense().double()
    other = copy.deepcopy(model)
    data = images([6, 3, 2], dtype=torch.float64)
    theirs = sgd(other)
    losses = plain(other, theirs, data)
    got, _ = trained(model, data, 4)
    torch.testing.assert_close(torch.stack(got[:3]), torch.stack(losses), **CLOSE)
