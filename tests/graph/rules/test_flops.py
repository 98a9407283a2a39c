"""Operation counts: convolutions and linear layers as PyTorch's own counter has them, the rest by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from convoy.graph.graph import TensorSpec
from convoy.graph.rules import rule_for
from convoy.graph.rules.shaping import AddOptions


def spec(x):
    return TensorSpec(tuple(x.shape), str(x.dtype).removeprefix("torch."), x.element_size())


def counted(bound, x):
    y, _ = bound.forward([x])
    return bound.rule.flops(bound.options, [spec(x)], [spec(y)])


@pytest.mark.parametrize(
    "module, shape",
    [
        (nn.Conv2d(6, 9, 3, padding=1), (2, 6, 8, 8)),
        (nn.Conv2d(6, 9, (2, 3), stride=2, bias=False), (2, 6, 8, 8)),
        (nn.Linear(6, 9), (4, 6)),
    ],
    ids=repr,
)
def test_as_pytorch_counts(bind_module, images, module, shape):
    x = images(shape).requires_grad_()
    with FlopCounterMode(display=False) as forward:
        y = module(x)
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    flops = counted(bind_module(module), x.detach())
    assert flops[0] == forward.get_total_flops()
    assert flops[1] + flops[2] == backward.get_total_flops()


def test_groups_are_convolutions_side_by_side(bind_module, images):
    grouped = counted(bind_module(nn.Conv2d(6, 9, 3, groups=3)), images((2, 6, 8, 8)))
    single = counted(bind_module(nn.Conv2d(2, 3, 3)), images((2, 2, 8, 8)))
    assert grouped == tuple(3 * n for n in single)


@pytest.mark.parametrize(
    "module, expected",
    [
        (nn.ReLU(), (400, 400, 0)),
        (nn.BatchNorm2d(4), (2400, 3600, 1600)),
        (nn.BatchNorm2d(4).eval(), (800, 400, 1600)),
        (nn.BatchNorm2d(4, affine=False), (2400, 3600, 0)),
        (nn.MaxPool2d(5), (24 * 16, 16, 0)),
        (nn.AvgPool2d(5), (400, 400, 0)),
        (nn.AdaptiveAvgPool2d(1), (400, 400, 0)),
        (nn.Flatten(), (0, 0, 0)),
        (nn.Identity(), (0, 0, 0)),
        (nn.Dropout().eval(), (0, 0, 0)),
    ],
    ids=repr,
)
def test_by_hand(bind_module, images, module, expected):
    assert counted(bind_module(module), images((1, 4, 10, 10))) == expected


def test_add_counts_the_sums_of_a_broadcast_gradient():
    whole, one = TensorSpec((2, 3), "float32"), TensorSpec((1, 3), "float32")
    assert rule_for("add").flops(AddOptions(), [whole, whole], [whole]) == (6, 0, 0)
    assert rule_for("add").flops(AddOptions(), [whole, one], [whole]) == (6, 6, 0)
    assert torch.add(torch.ones(2, 3), torch.ones(1, 3)).shape == whole.shape
