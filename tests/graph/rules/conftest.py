"""Shared by the tests of the rules: the comparison with autograd, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from convoy.graph.rules import BoundRule, bind


class _Leaf(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        return True


def _trace(model: nn.Module) -> fx.GraphModule:
    return fx.GraphModule(model, _Leaf().trace(model))


def _same_bits(got: Tensor, expected: Tensor) -> bool:
    as_int = {8: torch.int64, 4: torch.int32, 2: torch.int16}
    if got.dtype != expected.dtype or got.shape != expected.shape:
        return False
    if not got.is_floating_point():
        return torch.equal(got, expected)
    kind = as_int[got.element_size()]
    return torch.equal(got.contiguous().view(kind), expected.contiguous().view(kind))


def _bind_module(module: nn.Module) -> BoundRule:
    program = _trace(nn.Sequential(module))
    bound = bind(next(n for n in program.graph.nodes if n.op == "call_module"), program)
    assert bound is not None
    return bound


def _check_module(module: nn.Module, x: Tensor) -> tuple[BoundRule, Any, Tensor]:
    """Forward, input gradient, weight gradient and buffers of ``module`` on ``x`` by rule and by autograd.

    Returns the bound rule, what it saved and the gradient of the output, for further questions.
    """
    other = copy.deepcopy(module)
    bound = _bind_module(module)
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    expected = other(leaf)
    generator = torch.Generator().manual_seed(1)
    grad = torch.empty_like(expected).copy_(torch.randn(expected.shape, generator=generator))
    expected.backward(grad)

    y, saved = bound.forward([x])
    assert not y.requires_grad
    assert _same_bits(y, expected.detach()), "forward"
    for (name, b), c in zip(module.named_buffers(), other.buffers(), strict=True):
        assert _same_bits(b, c), name
    (dx,) = bound.input_grad(saved, grad)
    assert dx is not None and leaf.grad is not None
    assert _same_bits(dx, leaf.grad), "input gradient"
    gradients = bound.weight_grad(saved, grad)
    wanted = {name: p.grad for name, p in other.named_parameters()}
    assert gradients.keys() == wanted.keys()
    for name, g in gradients.items():
        assert wanted[name] is not None and _same_bits(g, wanted[name]), name
    return bound, saved, grad


def _images(shape: Sequence[int], *, seed: int = 0, dtype: torch.dtype = torch.float32, last: bool = False) -> Tensor:
    x = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if last else x


@pytest.fixture(scope="session")
def trace() -> Callable[[nn.Module], fx.GraphModule]:
    """Every child module becomes one node."""
    return _trace


@pytest.fixture(scope="session")
def same_bits() -> Callable[[Tensor, Tensor], bool]:
    """Same type, shape and bits; also +0 is not −0."""
    return _same_bits


@pytest.fixture(scope="session")
def bind_module() -> Callable[[nn.Module], BoundRule]:
    return _bind_module


@pytest.fixture(scope="session")
def check_module() -> Callable[..., tuple[BoundRule, Any, Tensor]]:
    return _check_module


@pytest.fixture(scope="session")
def images() -> Callable[..., Tensor]:
    """``images(shape, seed=, dtype=, last=)``: normal values, channels_last where ``last``."""
    return _images
