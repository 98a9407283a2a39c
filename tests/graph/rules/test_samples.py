"""Some samples of what was saved: the rows of the whole's gradients, and summands of its weight gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from convoy.errors import InternalError
from convoy.graph.rules import rule_for
from convoy.graph.rules.shaping import AddOptions, CatOptions

LAYERS = [
    (nn.Conv2d(6, 8, 3, padding=1, stride=2), (5, 6, 7, 5)),
    (nn.Conv2d(6, 6, 3, groups=3, bias=False), (5, 6, 7, 5)),
    (nn.Linear(6, 8), (5, 6)),
    (nn.Linear(6, 8), (5, 3, 6)),
    (nn.BatchNorm2d(6).eval(), (5, 6, 5, 5)),
    (nn.ReLU6(), (5, 6, 5, 5)),
    (nn.SiLU(), (5, 6)),
    (nn.MaxPool2d(2), (5, 6, 5, 5)),
    (nn.AvgPool2d(3, 2, 1), (5, 6, 5, 5)),
    (nn.AdaptiveAvgPool2d(1), (5, 6, 5, 5)),
    (nn.Flatten(), (5, 6, 3, 2)),
]
CLOSE = {"rtol": 1e-10, "atol": 1e-10}  # another number of samples, another order of sums


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("module, shape", LAYERS, ids=repr)
def test_rows_of_gradients_and_summands(bind_module, images, module, shape, last):
    torch.manual_seed(0)
    bound = bind_module(module.double())
    x = images(shape, dtype=torch.float64, last=last and len(shape) == 4)
    y, saved = bound.forward([x])
    grad = torch.randn_like(y)
    (whole,), weights = bound.input_grad(saved, grad), bound.weight_grad(saved, grad)
    total = {}
    for index in (torch.tensor([3, 0]), torch.tensor([1, 2, 4])):
        some = bound.rule.select_samples(bound.options, saved, index)
        torch.testing.assert_close(bound.input_grad(some, grad[index])[0], whole[index], **CLOSE)
        for name, g in bound.weight_grad(some, grad[index]).items():
            total[name] = g if name not in total else total[name] + g
    assert total.keys() == weights.keys()
    for name, g in total.items():
        torch.testing.assert_close(g, weights[name], **CLOSE)


@pytest.mark.parametrize("last", [False, True])
def test_layouts_stay(bind_module, images, last):
    bound = bind_module(nn.ReLU())
    _, saved = bound.forward([images((4, 3, 5, 6), last=last)])
    some = bound.rule.select_samples(bound.options, saved, torch.tensor([2, 1]))
    assert some.tensors[0].is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def test_what_couples_samples_is_refused(bind_module, images):
    x = images((4, 6, 5, 5))
    bound = bind_module(nn.BatchNorm2d(6))
    with pytest.raises(InternalError, match="couples the samples"):
        bound.rule.select_samples(bound.options, bound.forward([x])[1], torch.tensor([0]))
    for kind, options, inputs, said in (
        ("add", AddOptions(), [x, x[:1]], "broadcasts"),
        ("cat", CatOptions(0), [x, x], "couples the samples"),
    ):
        rule = rule_for(kind)
        _, saved = rule.forward(options, {}, inputs)
        with pytest.raises(InternalError, match=said):
            rule.select_samples(options, saved, torch.tensor([0]))
