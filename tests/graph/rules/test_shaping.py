"""Add, cat and dropout with several inputs, against autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from convoy.errors import InternalError
from convoy.graph.rules import rule_for
from convoy.graph.rules.shaping import AddOptions, CatOptions, DropoutOptions


def check(rule, options, inputs, expected_of, same_bits):
    leaves = [x.clone().requires_grad_() for x in inputs]
    expected = expected_of(*leaves)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(expected.dtype)
    expected.backward(grad)
    y, saved = rule.forward(options, {}, inputs)
    assert same_bits(y, expected.detach())
    gradients = rule.input_grad(options, {}, saved, grad)
    assert len(gradients) == len(leaves)
    for g, leaf in zip(gradients, leaves, strict=True):
        assert same_bits(g, leaf.grad)


@pytest.mark.parametrize("alpha", [1, -2, 0.3])
@pytest.mark.parametrize("other", [(2, 3, 4, 5), (1, 3, 1, 1), (4, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_add(images, same_bits, alpha, other, dtype):
    a, b = images((2, 3, 4, 5)), images(other, seed=1, dtype=dtype)
    check(rule_for("add"), AddOptions(alpha), [a, b], lambda a, b: torch.add(a, b, alpha=alpha), same_bits)


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cat(images, same_bits, dim, dtype):
    inputs = [images((2, 3, 4), seed=0), images((2, 3, 4), seed=1, dtype=dtype), images((2, 3, 4), seed=2)]
    check(rule_for("cat"), CatOptions(dim), inputs, lambda *x: torch.cat(x, dim), same_bits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dropout_with_the_mask_that_torch_drew(images, same_bits, dtype):
    x = images((4, 3, 5, 5), dtype=dtype) + 10
    leaf = x.clone().requires_grad_()
    torch.manual_seed(0)
    expected = F.dropout(leaf, 0.3)
    torch.manual_seed(0)
    mask = F.dropout(torch.ones_like(x), 0.3)
    expected.backward(x)
    y, saved = rule_for("dropout").forward(DropoutOptions(), {}, [x, mask])
    assert same_bits(y, expected.detach())
    dx, none = rule_for("dropout").input_grad(DropoutOptions(), {}, saved, x)
    assert same_bits(dx, leaf.grad) and none is None


def test_dropout_without_a_mask(images):
    x = images((2, 3))
    with pytest.raises(InternalError, match="needs its mask"):
        rule_for("dropout").forward(DropoutOptions(), {}, [x])
    y, saved = rule_for("dropout").forward(DropoutOptions(active=False), {}, [x])
    assert y is x and saved.bytes == 0


def test_broadcast_adds_have_no_batch_slices(images):
    rule, options = rule_for("add"), AddOptions()
    _, saved = rule.forward(options, {}, [images((2, 3)), images((1, 3))])
    with pytest.raises(InternalError, match=r"\(2, 3\) and \(1, 3\) has no tiles"):
        rule.narrow_samples(options, saved, 0, 1)
