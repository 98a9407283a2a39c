"""Activations, element by element. Those of the ReLU family decide by a sign that can be remembered.

Where the gradient can be had from the output, the output is saved: the next layer keeps it anyway.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from convoy.graph.graph import TensorSpec
from convoy.graph.rules.rule import Channelwise, O, Outcome, Parameters, Saved, pack_signs, unpack_signs

_aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class NoOptions:
    """For kinds that have none."""


@dataclass(frozen=True, slots=True)
class LeakyReLUOptions:
    negative_slope: float = 0.01


@dataclass(frozen=True, slots=True)
class GELUOptions:
    approximate: str = "none"


class Activation(Channelwise[O]):
    """A function of one element. A subclass gives value and gradient; ``saves_output`` says which of the two
    tensors the gradient is computed from. ``operations`` per element: forward, input gradient (an exponential or
    error function counts as one)."""

    saves_output: ClassVar[bool] = True
    operations: ClassVar[tuple[int, int]] = (1, 1)

    @abstractmethod
    def value(self, options: O, x: Tensor) -> Tensor:
        """The output, out of place."""

    @abstractmethod
    def gradient(self, options: O, kept: Tensor, grad: Tensor) -> Tensor:
        """Of the input, from the kept tensor."""

    def forward(self, options: O, parameters: Parameters, inputs: Sequence[Tensor]) -> tuple[Tensor, Saved]:
        (x,) = inputs
        y = self.value(options, x)
        return y, Saved((y if self.saves_output else x,))

    def input_grad(self, options: O, parameters: Parameters, saved: Saved, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (self.gradient(options, saved.tensors[0], grad),)

    def flops(self, options: O, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> tuple[int, int, int]:
        forward, backward = self.operations
        return forward * outputs[0].elements, backward * outputs[0].elements, 0


class SignActivation(Activation[O]):
    """One whose slope takes two values, by a sign of the kept tensor."""

    has_outcome = True

    @abstractmethod
    def passes(self, options: O, kept: Tensor) -> Tensor:
        """Bool like the input: where the gradient passes unchanged."""

    def otherwise(self, options: O, grad: Tensor) -> Tensor | float:
        """The gradient where it does not."""
        return 0.0

    def outcome(self, options: O, saved: Saved) -> Outcome:
        (kept,) = saved.tensors
        return Outcome(self.kind, pack_signs(self.passes(options, kept)), tuple(kept.shape[1:]))

    def input_grad_from(self, options: O, outcome: Outcome, grad: Tensor) -> tuple[Tensor | None, ...]:
        signs = torch.empty_like(grad, dtype=torch.bool).copy_(unpack_signs(outcome.data, outcome.shape))
        return (torch.where(signs, grad, self.otherwise(options, grad)),)


class ReLU(SignActivation[NoOptions]):
    kind = "relu"

    def value(self, options: NoOptions, x: Tensor) -> Tensor:
        return torch.relu(x)

    def gradient(self, options: NoOptions, kept: Tensor, grad: Tensor) -> Tensor:
        result: Tensor = _aten.threshold_backward(grad, kept, 0)
        return result

    def passes(self, options: NoOptions, kept: Tensor) -> Tensor:
        return ~(kept <= 0)  # a NaN passes the gradient on, as in the kernel


class ReLU6(SignActivation[NoOptions]):
    kind = "relu6"
    operations = (2, 2)

    def value(self, options: NoOptions, x: Tensor) -> Tensor:
        return F.relu6(x)

    def gradient(self, options: NoOptions, kept: Tensor, grad: Tensor) -> Tensor:
        result: Tensor = _aten.hardtanh_backward(grad, kept, 0, 6)
        return result

    def passes(self, options: NoOptions, kept: Tensor) -> Tensor:
        return ~((kept <= 0) | (kept >= 6))


class LeakyReLU(SignActivation[LeakyReLUOptions]):
    """The output tells the sign of the input only for slopes of at least 0; others are not bound to this rule."""

    kind = "leaky_relu"
    operations = (2, 2)

    def value(self, options: LeakyReLUOptions, x: Tensor) -> Tensor:
        return F.leaky_relu(x, options.negative_slope)

    def gradient(self, options: LeakyReLUOptions, kept: Tensor, grad: Tensor) -> Tensor:
        result: Tensor = _aten.leaky_relu_backward(grad, kept, options.negative_slope, True)
        return result

    def passes(self, options: LeakyReLUOptions, kept: Tensor) -> Tensor:
        return kept > 0

    def otherwise(self, options: LeakyReLUOptions, grad: Tensor) -> Tensor | float:
        return grad * options.negative_slope


class GELU(Activation[GELUOptions]):
    kind = "gelu"
    saves_output = False
    operations = (5, 9)

    def value(self, options: GELUOptions, x: Tensor) -> Tensor:
        return F.gelu(x, approximate=options.approximate)

    def gradient(self, options: GELUOptions, kept: Tensor, grad: Tensor) -> Tensor:
        result: Tensor = _aten.gelu_backward(grad, kept, approximate=options.approximate)
        return result


class SiLU(Activation[NoOptions]):
    kind = "silu"
    saves_output = False
    operations = (4, 8)

    def value(self, options: NoOptions, x: Tensor) -> Tensor:
        return F.silu(x)

    def gradient(self, options: NoOptions, kept: Tensor, grad: Tensor) -> Tensor:
        result: Tensor = _aten.silu_backward(grad, kept)
        return result


class Tanh(Activation[NoOptions]):
    kind = "tanh"
    operations = (1, 3)

    def value(self, options: NoOptions, x: Tensor) -> Tensor:
        return torch.tanh(x)

    def gradient(self, options: NoOptions, kept: Tensor, grad: Tensor) -> Tensor:
        result: Tensor = _aten.tanh_backward(grad, kept)
        return result


class Sigmoid(Activation[NoOptions]):
    kind = "sigmoid"
    operations = (3, 3)

    def value(self, options: NoOptions, x: Tensor) -> Tensor:
        return torch.sigmoid(x)

    def gradient(self, options: NoOptions, kept: Tensor, grad: Tensor) -> Tensor:
        result: Tensor = _aten.sigmoid_backward(grad, kept)
        return result
