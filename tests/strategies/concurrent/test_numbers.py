"""The numbers are those of sequential training, and do not depend on timing, engine or placement."""

import random
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

NAMES = ("vgg", "resnet", "dense", "bottleneck")
CLOSE = {"rtol": 1e-9, "atol": 1e-10}
"""Of float64 after three updates: the kernel of a convolution adds up a group of channels in another order."""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_group_has_the_bits_of_the_plain_loop(make, images, plain, concurrent, differing, name, dtype):
    model, data = make(name).to(dtype), images([4, 4, 3], dtype)
    got, step = concurrent(model, data, groups=1)
    assert differing(got, plain(model, data)) == []
    assert {p.lane for p in step.plan().schedule} == {"driver", "conv", "nonconv"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("groups", [2, 3])
def test_groups_change_the_last_digits_only(make, images, plain, concurrent, name, groups):
    model, data = make(name).double(), images([4, 4, 3])
    expected = plain(model, data)
    got, step = concurrent(model, data, groups=groups)
    assert got.keys() == expected.keys()
    for key, value in got.items():
        torch.testing.assert_close(value, expected[key], **CLOSE, msg=lambda text, key=key: f"{key}: {text}")
    parts = {p.action.split()[2] for p in step.plan().schedule}
    assert f"0.{groups - 1}" in parts, "something was cut"


@settings(max_examples=8)
@given(
    name=st.sampled_from(NAMES), groups=st.integers(1, 4), placement=st.sampled_from(["kind", "planned"]),
    seed=st.integers(0, 999), clip=st.sampled_from([None, 0.1]),
    sizes=st.lists(st.integers(2, 5), min_size=1, max_size=3),
)  # fmt: skip
def test_bits_depend_neither_on_delays_nor_on_the_placement(
    make, images, concurrent, differing, name, groups, placement, seed, clip, sizes
):
    model, data = make(name, dropout=0.3), images(sizes, torch.float32)
    expected, _ = concurrent(model, data, groups, "kind", engine="inline", clip=clip)
    drawn = random.Random(seed)
    got, _ = concurrent(
        model, data, groups, placement, clip=clip, disturb=lambda lane, action: time.sleep(drawn.random() * 3e-4)
    )
    assert differing(got, expected) == []


class Drawn(nn.Module):
    """Layers one after the other, some around a shortcut or beside one."""

    def __init__(self, layers, width):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.layers, self.plan, pixels = nn.ModuleList(), [], 8
        for layer in layers:
            made = None
            if layer in ("add", "conv"):
                made = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
            elif layer == "cat":
                made, width = nn.Conv2d(width, 4, 1), width + 4
            elif layer == "depthwise":
                made = nn.Conv2d(width, width, 3, padding=1, groups=width)
            elif layer == "norm":
                made = nn.BatchNorm2d(width, affine=width % 4 == 0)
            elif layer == "pool" and pixels > 2:
                made, pixels = nn.MaxPool2d(2), pixels // 2
            self.layers.append(made or nn.ReLU(inplace=layer == "relu"))
            self.plan.append(layer)
        self.fc = nn.Linear(width, 5)

    def forward(self, x):
        x = self.stem(x)
        for name, layer in zip(self.plan, self.layers, strict=True):
            y = layer(x)
            x = y + x if name == "add" else torch.cat([x, y], 1) if name == "cat" else y
        return self.fc(x.mean((2, 3)))


LAYERS = ("conv", "norm", "relu", "copying relu", "add", "cat", "depthwise", "pool")


@settings(max_examples=10)
@given(st.lists(st.sampled_from(LAYERS), min_size=1, max_size=7), st.sampled_from([4, 6, 8]), st.integers(1, 3))
def test_any_network_has_the_numbers_of_the_plain_loop(images, plain, concurrent, differing, layers, width, groups):
    torch.manual_seed(0)
    model, data = Drawn(layers, width).double(), images([3, 2])
    expected = plain(model, data)
    got, _ = concurrent(model, data, groups)
    if groups == 1:
        assert differing(got, expected) == []
    for key, value in got.items():
        torch.testing.assert_close(value, expected[key], **CLOSE)


def test_with_clipping_all_updates_wait_for_all_gradients(make, images, plain, concurrent):
    model, data = make("vgg").double(), images([4, 4])
    expected = plain(model, data, clip=0.05)
    got, _ = concurrent(model, data, clip=0.05)
    for key, value in got.items():
        torch.testing.assert_close(value, expected[key], **CLOSE)
