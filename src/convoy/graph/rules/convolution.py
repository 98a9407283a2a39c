"""Two-dimensional convolution.

x [N, C_in, H, W], weight [C_out, C_in / groups, KH, KW], bias [C_out] → y [N, C_out, H_out, W_out].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from convoy.errors import InternalError
from convoy.graph.graph import TensorSpec
from convoy.graph.rules.rule import Parameters, Rule, Saved, Tiling, given, require_images, rows


@dataclass(frozen=True, slots=True)
class Conv2dOptions:
    """``pad_after`` (height, width) are zeros put after the last row and column only, as padding "same" needs where
    dilation · (kernel − 1) is odd. ``compute`` is the type that input and weight are cast to before (as autocast
    does), with gradients cast back; None leaves them as they are."""

    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    bias: bool = True
    pad_after: tuple[int, int] = (0, 0)
    compute: torch.dtype | None = None


class Conv2d(Rule[Conv2dOptions]):
    """Saves its input. Tiles may differ from the whole in the last bits: the kernel orders its sums by the sizes."""

    kind = "conv2d"
    has_weight = True

    def forward(self, options: Conv2dOptions, parameters: Parameters, inputs: Sequence[Tensor]) -> tuple[Tensor, Saved]:
        (x,) = inputs
        require_images(x, "conv2d")
        dtype = x.dtype
        weight, bias = _cast(parameters.get("weight"), options), _cast(parameters.get("bias"), options)
        x = x if options.compute is None else x.to(options.compute)
        if options.pad_after != (0, 0):
            x = F.pad(x, (0, options.pad_after[1], 0, options.pad_after[0]))
        y = torch.conv2d(x, weight, bias, options.stride, options.padding, options.dilation, options.groups)  # type: ignore[arg-type]
        return y, Saved((x,), (dtype,))

    def input_grad(
        self, options: Conv2dOptions, parameters: Parameters, saved: Saved, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        gradient = _backward(options, parameters, saved, grad, (True, False, False))[0]
        if options.pad_after != (0, 0):
            gradient = F.pad(gradient, (0, -options.pad_after[1], 0, -options.pad_after[0]))
        return (gradient.to(saved.facts[0]),)

    def weight_grad(
        self, options: Conv2dOptions, parameters: Parameters, saved: Saved, grad: Tensor
    ) -> dict[str, Tensor]:
        _, weight, bias = _backward(options, parameters, saved, grad, (False, True, options.bias))
        gradients = {"weight": weight, "bias": bias} if options.bias else {"weight": weight}
        return {name: g.to(given(parameters, name).dtype) for name, g in gradients.items()}

    def tiling(self, options: Conv2dOptions) -> Tiling:
        if options.groups == 1:
            return Tiling(samples=True, forward="all", input_grad="all")
        out_step, in_step = _steps(options)
        return Tiling(True, "own", "own", forward_step=out_step, input_grad_step=in_step)

    def flops(
        self, options: Conv2dOptions, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> tuple[int, int, int]:
        per_output = 2 * options.in_channels // options.groups * options.kernel[0] * options.kernel[1]
        return (per_output * outputs[0].elements,) * 3

    def narrow_forward(
        self, options: Conv2dOptions, parameters: Parameters, inputs: Sequence[Tensor], lo: int, hi: int
    ) -> tuple[Conv2dOptions, Parameters, Sequence[Tensor]]:
        (x,) = inputs
        part, (first, last) = _narrow(options, lo, hi, by_output=True)
        return part, rows(parameters, lo, hi), (x[:, first:last],)

    def narrow_input_grad(
        self, options: Conv2dOptions, parameters: Parameters, saved: Saved, grad: Tensor, lo: int, hi: int
    ) -> tuple[Conv2dOptions, Parameters, Saved, Tensor]:
        part, (first, last) = _narrow(options, lo, hi, by_output=False)
        weight = given(parameters, "weight")
        weight = weight[:, lo:hi] if options.groups == 1 else weight[first:last]
        return part, {"weight": weight}, Saved((saved.tensors[0][:, lo:hi],), saved.facts), grad[:, first:last]

    def narrow_weight_grad(
        self, options: Conv2dOptions, parameters: Parameters, saved: Saved, grad: Tensor, lo: int, hi: int
    ) -> tuple[Conv2dOptions, Parameters, Saved, Tensor]:
        part, (first, last) = _narrow(options, lo, hi, by_output=True)
        return part, rows(parameters, lo, hi), Saved((saved.tensors[0][:, first:last],), saved.facts), grad[:, lo:hi]


def _cast(tensor: Tensor | None, options: Conv2dOptions) -> Tensor | None:
    return tensor if tensor is None or options.compute is None else tensor.to(options.compute)


def _backward(
    options: Conv2dOptions, parameters: Parameters, saved: Saved, grad: Tensor, mask: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    (x,), weight = saved.tensors, given(parameters, "weight")
    if options.compute is not None:
        # The weight gradient looks at the sizes and the layout of the weight only: no need to cast its values.
        weight = weight.to(options.compute) if mask[0] else torch.empty_like(weight, dtype=options.compute)
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        grad,
        x,
        weight,
        [options.out_channels] if options.bias else None,
        options.stride,
        options.padding,
        options.dilation,
        False,
        (0, 0),
        options.groups,
        mask,
    )
    return gradients


def _steps(options: Conv2dOptions) -> tuple[int, int]:
    """Output and input channels per group."""
    return options.out_channels // options.groups, options.in_channels // options.groups


def _narrow(options: Conv2dOptions, lo: int, hi: int, *, by_output: bool) -> tuple[Conv2dOptions, tuple[int, int]]:
    """Options of the tile lo..hi, and the range of channels needed on the other side."""
    if options.groups == 1:
        if by_output:
            return replace(options, out_channels=hi - lo), (0, options.in_channels)
        return replace(options, in_channels=hi - lo), (0, options.out_channels)
    out_step, in_step = _steps(options)
    step, other = (out_step, in_step) if by_output else (in_step, out_step)
    if lo % step or hi % step:
        raise InternalError(f"channels {lo}:{hi} cut through a group of {step}")
    first, last = lo // step, hi // step
    part = replace(
        options, groups=last - first, out_channels=out_step * (last - first), in_channels=in_step * (last - first)
    )
    return part, (first * other, last * other)
