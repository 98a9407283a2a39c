"""Models for tests of capturing, and what it means that a captured model is the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convoy.graph.graph import Graph
from convoy.graph.random import keyed


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor | None = None


class Model(nn.Module):
    """A model whose forward is given as a function of (module, inputs)."""

    def __init__(self, forward: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self._forward = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self._forward(self, x)


def images(n: int = 4) -> Tensor:
    return torch.randn(n, 4, 6, 6, generator=torch.Generator().manual_seed(n))


def run(graph: Graph, *args: Any, **kwargs: Any) -> Any:
    assert graph.output is not None
    with keyed(seed=0, batch=0):
        return graph.output.rebuild(graph.program(**graph.bind(args, kwargs)))


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Output):
        value = vars(value)
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [t for part in parts for t in tensors(part)]


def assert_same_model(model: nn.Module, graph: Graph, x: Tensor) -> None:
    """Values, gradients and buffers, bit for bit, against a copy that has never been captured."""
    reference = copy.deepcopy(model)
    expected, got = reference(x.clone()), run(graph, x.clone())
    assert type(got) is type(expected)
    pairs = list(zip(tensors(got), tensors(expected), strict=True))
    assert pairs and all(torch.equal(a, b) for a, b in pairs)
    for value in (got, expected):
        total = sum((t.square().sum() for t in tensors(value) if t.requires_grad), torch.zeros(()))
        if total.requires_grad:
            total.backward()
    for (name, mine), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None), name
        assert mine.grad is None or theirs.grad is None or torch.equal(mine.grad, theirs.grad), name
    for (name, buffer), other in zip(model.named_buffers(), reference.buffers(), strict=True):
        assert torch.equal(buffer, other), name


def conv(inner: int = 4, outer: int = 4) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, 3, padding=1)
