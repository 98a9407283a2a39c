"""Pooling over windows: x [N, C, H, W] → y [N, C, H_out, W_out]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from convoy.graph.graph import TensorSpec
from convoy.graph.rules.rule import Channelwise, Outcome, Parameters, Saved, layout, require_images

_aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class MaxPoolOptions:
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    ceil_mode: bool = False


@dataclass(frozen=True, slots=True)
class AvgPoolOptions:
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor: int | None = None


@dataclass(frozen=True, slots=True)
class AdaptiveAvgPoolOptions:
    """``output``: rows and columns, None for those of the input. ``keep``: whether one pixel stays a pixel
    ([N, C, 1, 1]) or goes ([N, C], the mean over both dimensions)."""

    output: tuple[int | None, int | None] = (1, 1)
    keep: bool = True


def _like_input(saved: Saved, grad: Tensor) -> Tensor:
    """A tensor of the input's size and layout, for kernels that look at nothing else."""
    height, width, memory_format = saved.facts
    return torch.empty(
        (*grad.shape[:2], height, width), dtype=grad.dtype, device=grad.device, memory_format=memory_format
    )


def _facts(x: Tensor) -> tuple[int, int, torch.memory_format]:
    require_images(x, "pooling")
    return x.shape[2], x.shape[3], layout(x)


class MaxPool(Channelwise[MaxPoolOptions]):
    """Saves which pixel won, not the input. The outcome is its place in the window: one byte for windows up to 256."""

    kind = "max_pool"
    has_outcome = True

    def forward(
        self, options: MaxPoolOptions, parameters: Parameters, inputs: Sequence[Tensor]
    ) -> tuple[Tensor, Saved]:
        (x,) = inputs
        facts = _facts(x)
        y, winners = _aten.max_pool2d_with_indices(
            x, options.kernel, options.stride, options.padding, options.dilation, options.ceil_mode
        )
        return y, Saved((winners,), facts)

    def input_grad(
        self, options: MaxPoolOptions, parameters: Parameters, saved: Saved, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        return (
            _aten.max_pool2d_with_indices_backward(
                grad,
                _like_input(saved, grad),
                options.kernel,
                options.stride,
                options.padding,
                options.dilation,
                options.ceil_mode,
                saved.tensors[0],
            ),
        )

    def flops(
        self, options: MaxPoolOptions, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> tuple[int, int, int]:
        n = outputs[0].elements
        return (options.kernel[0] * options.kernel[1] - 1) * n, n, 0

    def outcome(self, options: MaxPoolOptions, saved: Saved) -> Outcome:
        (winners,), (height, width, _) = saved.tensors, saved.facts
        rows, columns = self._corners(options, winners)
        row = (torch.div(winners, width, rounding_mode="floor") - rows) // options.dilation[0]
        column = (winners % width - columns) // options.dilation[1]
        small = options.kernel[0] * options.kernel[1] <= 256
        place = (row * options.kernel[1] + column).to(torch.uint8 if small else torch.int32)
        return Outcome(self.kind, place, (winners.shape[1], height, width))

    def input_grad_from(self, options: MaxPoolOptions, outcome: Outcome, grad: Tensor) -> tuple[Tensor | None, ...]:
        _, height, width = outcome.shape
        place = outcome.data.long()
        rows, columns = self._corners(options, place)
        row = rows + torch.div(place, options.kernel[1], rounding_mode="floor") * options.dilation[0]
        winners = row * width + columns + place % options.kernel[1] * options.dilation[1]
        memory_format = layout(grad)
        saved = Saved((winners.contiguous(memory_format=memory_format),), (height, width, memory_format))
        return self.input_grad(options, {}, saved, grad)

    @staticmethod
    def _corners(options: MaxPoolOptions, like: Tensor) -> tuple[Tensor, Tensor]:
        """First row [H_out, 1] and first column [W_out] of each window, in the input; negative in the padding."""
        rows = torch.arange(like.shape[2], device=like.device)[:, None] * options.stride[0] - options.padding[0]
        columns = torch.arange(like.shape[3], device=like.device) * options.stride[1] - options.padding[1]
        return rows, columns


class AvgPool(Channelwise[AvgPoolOptions]):
    """Saves nothing but sizes."""

    kind = "avg_pool"

    def forward(
        self, options: AvgPoolOptions, parameters: Parameters, inputs: Sequence[Tensor]
    ) -> tuple[Tensor, Saved]:
        (x,) = inputs
        facts = _facts(x)
        return _aten.avg_pool2d(x, *self._arguments(options)), Saved(facts=facts)

    def input_grad(
        self, options: AvgPoolOptions, parameters: Parameters, saved: Saved, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        return (_aten.avg_pool2d_backward(grad, _like_input(saved, grad), *self._arguments(options)),)

    def flops(
        self, options: AvgPoolOptions, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> tuple[int, int, int]:
        n = options.kernel[0] * options.kernel[1] * outputs[0].elements
        return n, n, 0

    @staticmethod
    def _arguments(options: AvgPoolOptions) -> tuple[object, ...]:
        return (
            options.kernel,
            options.stride,
            options.padding,
            options.ceil_mode,
            options.count_include_pad,
            options.divisor,
        )


class AdaptiveAvgPool(Channelwise[AdaptiveAvgPoolOptions]):
    """Saves nothing but sizes. One pixel is the mean over all pixels."""

    kind = "adaptive_avg_pool"

    def forward(
        self, options: AdaptiveAvgPoolOptions, parameters: Parameters, inputs: Sequence[Tensor]
    ) -> tuple[Tensor, Saved]:
        (x,) = inputs
        facts = _facts(x)
        y = F.adaptive_avg_pool2d(x, options.output) if options.keep else x.mean((2, 3))
        return y, Saved(facts=facts)

    def input_grad(
        self, options: AdaptiveAvgPoolOptions, parameters: Parameters, saved: Saved, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        height, width, _ = saved.facts
        if grad.dim() == 2:
            grad = grad[:, :, None, None]
        if grad.shape[2:] == (1, 1):
            return (grad.expand(*grad.shape[:2], height, width) / (height * width),)
        return (_aten._adaptive_avg_pool2d_backward(grad, _like_input(saved, grad)),)

    def flops(
        self, options: AdaptiveAvgPoolOptions, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> tuple[int, int, int]:
        return inputs[0].elements, inputs[0].elements, 0
