"""Remembered outcomes: signs as bits, choices of a max pool as bytes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from convoy.errors import InternalError
from convoy.graph.rules import Outcome, rule_for
from convoy.graph.rules.activations import NoOptions
from convoy.graph.rules.rule import Saved, pack_signs, unpack_signs

DECIDING = [
    nn.ReLU(),
    nn.ReLU6(),
    nn.LeakyReLU(0.2),
    nn.LeakyReLU(0.0),
    nn.MaxPool2d(2),
    nn.MaxPool2d((3, 2), stride=(2, 1), padding=1),
    nn.MaxPool2d(2, dilation=2, ceil_mode=True),
    nn.MaxPool2d(17, stride=1, padding=8),  # more than 256 places in a window
]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("module", DECIDING, ids=repr)
def test_the_own_outcome_gives_the_own_gradient(bind_module, images, same_bits, module, last):
    bound = bind_module(module)
    x = 4 * images((3, 5, 9, 11), last=last)
    y, saved = bound.forward([x])
    grad = torch.randn_like(y)
    outcome = bound.outcome(saved)
    assert bound.rule.has_outcome
    (expected,), (got,) = bound.input_grad(saved, grad), bound.input_grad_from(outcome, grad)
    assert same_bits(got, expected) and got.stride() == expected.stride()
    assert outcome.bytes < saved.bytes


@pytest.mark.parametrize("module", DECIDING[:6], ids=repr)
def test_outcomes_are_by_sample(bind_module, images, same_bits, module):
    bound = bind_module(module)
    y, saved = bound.forward([4 * images((4, 5, 9, 11))])
    grad = torch.randn_like(y)
    whole = bound.outcome(saved)
    order = torch.tensor([2, 0])
    mixed = Outcome.join([whole.samples(order), whole.samples(slice(3, 4))])
    index = torch.tensor([2, 0, 3])
    (got,), (expected,) = bound.input_grad_from(mixed, grad[index]), bound.input_grad(saved, grad)
    assert same_bits(got, expected[index])


def test_another_outcome_gives_another_gradient(bind_module):
    bound = bind_module(nn.ReLU())
    _, mine = bound.forward([torch.tensor([[1.0, -1.0, 2.0]])])
    _, other = bound.forward([torch.tensor([[-1.0, 1.0, 2.0]])])
    grad = torch.tensor([[5.0, 6.0, 7.0]])
    assert bound.input_grad(mine, grad)[0].tolist() == [[5, 0, 7]]
    assert bound.input_grad_from(bound.outcome(other), grad)[0].tolist() == [[0, 6, 7]]


def test_signs_take_a_bit_and_choices_a_byte(bind_module, images):
    relu, pool = bind_module(nn.ReLU()), bind_module(nn.MaxPool2d(2))
    x = images((4, 3, 6, 6))
    assert relu.outcome(relu.forward([x])[1]).bytes == 4 * 14  # ⌈108 / 8⌉
    choices = pool.outcome(pool.forward([x])[1])
    assert choices.data.dtype == torch.uint8 and choices.data.shape == (4, 3, 3, 3)
    assert choices.data.max() == 3


def test_a_nan_passes_the_gradient_on_as_in_the_kernel():
    rule = rule_for("relu")
    saved = Saved((torch.tensor([[float("nan"), 0.0]]),))
    grad = torch.ones(1, 2)
    assert rule.input_grad(NoOptions(), {}, saved, grad)[0].tolist() == [[1, 0]]
    assert rule.input_grad_from(NoOptions(), rule.outcome(NoOptions(), saved), grad)[0].tolist() == [[1, 0]]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(shape=st.lists(st.integers(0, 5), min_size=1, max_size=4), seed=st.integers(0, 9))
def test_packing_is_undone_by_unpacking(shape, seed):
    signs = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = pack_signs(signs)
    features = signs[0].numel() if shape[0] else 0
    assert shape[0] == 0 or packed.shape == (shape[0], -(-features // 8))
    assert torch.equal(unpack_signs(packed, shape[1:]), signs)


def test_what_has_no_outcome_says_so(bind_module, images):
    bound = bind_module(nn.GELU())
    _, saved = bound.forward([images((1, 2, 3, 3))])
    with pytest.raises(InternalError, match="gelu has no outcome"):
        bound.outcome(saved)
    with pytest.raises(InternalError, match="different layers"):
        Outcome.join([Outcome("relu", torch.zeros(1, 1), (3,)), Outcome("relu", torch.zeros(1, 1), (4,))])
