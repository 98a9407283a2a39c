"""Gradients that enter a stage's backward pass: the same as torch's own, and nothing is held longer than needed."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor, nn

from convoy.strategies.pipelined.entry import Entry, entry_of


def stage() -> tuple[Tensor, list[Tensor]]:
    """A weight, and three values that depend on it; the last does not save its own output."""
    weight = torch.arange(1.0, 5.0, requires_grad=True)
    return weight, [weight.exp(), weight * 2, (weight * 3).sum()]


def test_the_gradients_are_those_of_torch() -> None:
    weight, outputs = stage()
    sent = [torch.randn_like(output) for output in outputs]
    torch.autograd.backward(outputs, sent)
    again, values = stage()
    entry = entry_of({2: values})
    assert entry is not None
    gradients: dict[int, list[Tensor | None]] = {2: list(sent)}
    entry.backward(gradients)
    assert weight.grad is not None and again.grad is not None
    assert torch.equal(again.grad, weight.grad)
    assert not gradients


def test_a_value_for_two_consumers_gets_the_sum_and_missing_gradients_are_none() -> None:
    weight, (first, second, third) = stage()
    entry = entry_of({2: [first, second], 3: [None, first, third]})
    assert entry is not None
    ones = torch.ones(4)
    entry.backward({2: [ones, None], 3: [None, 2 * ones, None]})
    assert weight.grad is not None
    assert torch.equal(weight.grad, 3 * weight.detach().exp())


def test_where_no_gradient_came_back_nothing_happens() -> None:
    weight, outputs = stage()
    entry = entry_of({2: outputs})
    assert entry is not None
    entry.backward({2: [None, None, None]})
    assert weight.grad is None
    assert entry_of({2: [None]}) is None and entry_of({}) is None


def test_outputs_are_not_held_and_gradients_go_as_they_are_used() -> None:
    released: list[str] = []
    layer = nn.Linear(3, 3)
    below = layer(torch.randn(2, 3, requires_grad=True))
    below.register_hook(lambda _: released.append("lower part begins"))
    output = below * 2  # saves nothing of its own output
    weakref.finalize(output.untyped_storage(), released.append, "output")
    entry: Entry | None = entry_of({2: [output]})
    assert entry is not None
    del output
    assert released == ["output"]
    gradient = torch.ones(2, 3)
    weakref.finalize(gradient.untyped_storage(), released.append, "gradient")
    gradients: dict[int, list[Tensor | None]] = {2: [gradient]}
    del gradient
    entry.backward(gradients)
    assert released == ["output", "gradient", "lower part begins"]
