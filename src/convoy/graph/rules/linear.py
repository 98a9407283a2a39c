"""Fully-connected layer: x [N, ..., in], weight [out, in], bias [out] → y [N, ..., out]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from convoy.graph.graph import TensorSpec
from convoy.graph.rules.rule import Parameters, Rule, Saved, Tiling, given, rows


@dataclass(frozen=True, slots=True)
class LinearOptions:
    """``compute`` as for a convolution: the type to cast to before, as autocast does."""

    in_features: int
    out_features: int
    bias: bool = True
    compute: torch.dtype | None = None


class Linear(Rule[LinearOptions]):
    """Saves its input. Channels are the features, here always the last dimension."""

    kind = "linear"
    has_weight = True

    def forward(self, options: LinearOptions, parameters: Parameters, inputs: Sequence[Tensor]) -> tuple[Tensor, Saved]:
        (x,) = inputs
        dtype, weight, bias = x.dtype, given(parameters, "weight"), parameters.get("bias")
        if options.compute is not None:
            x, weight = x.to(options.compute), weight.to(options.compute)
            bias = None if bias is None else bias.to(options.compute)
        return F.linear(x, weight, bias), Saved((x,), (dtype,))

    def input_grad(
        self, options: LinearOptions, parameters: Parameters, saved: Saved, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        (x,), weight = saved.tensors, given(parameters, "weight")
        weight = weight if options.compute is None else weight.to(options.compute)
        gradient = grad.reshape(-1, options.out_features).mm(weight)
        return (gradient.view(x.shape).to(saved.facts[0]),)

    def weight_grad(
        self, options: LinearOptions, parameters: Parameters, saved: Saved, grad: Tensor
    ) -> dict[str, Tensor]:
        flat = grad.reshape(-1, options.out_features)
        gradients = {"weight": flat.t().mm(saved.tensors[0].reshape(-1, options.in_features))}
        if options.bias:
            gradients["bias"] = flat.sum(0)
        return {name: g.to(given(parameters, name).dtype) for name, g in gradients.items()}

    def tiling(self, options: LinearOptions) -> Tiling:
        return Tiling(samples=True, forward="all", input_grad="all")

    def flops(
        self, options: LinearOptions, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> tuple[int, int, int]:
        return (2 * options.in_features * outputs[0].elements,) * 3

    def narrow_forward(
        self, options: LinearOptions, parameters: Parameters, inputs: Sequence[Tensor], lo: int, hi: int
    ) -> tuple[LinearOptions, Parameters, Sequence[Tensor]]:
        part = LinearOptions(options.in_features, hi - lo, options.bias, options.compute)
        return part, rows(parameters, lo, hi), inputs

    def narrow_input_grad(
        self, options: LinearOptions, parameters: Parameters, saved: Saved, grad: Tensor, lo: int, hi: int
    ) -> tuple[LinearOptions, Parameters, Saved, Tensor]:
        part = LinearOptions(hi - lo, options.out_features, options.bias, options.compute)
        weight = given(parameters, "weight")[:, lo:hi]
        return part, {"weight": weight}, Saved((saved.tensors[0][..., lo:hi],), saved.facts), grad

    def narrow_weight_grad(
        self, options: LinearOptions, parameters: Parameters, saved: Saved, grad: Tensor, lo: int, hi: int
    ) -> tuple[LinearOptions, Parameters, Saved, Tensor]:
        part = LinearOptions(options.in_features, hi - lo, options.bias, options.compute)
        return part, rows(parameters, lo, hi), saved, grad[..., lo:hi]
