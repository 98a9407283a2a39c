"""What a layer of ``torch.nn`` is to the rules: its kind and options, or that no rule fits it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import nn

from convoy.graph.rules.activations import GELUOptions, LeakyReLUOptions, NoOptions
from convoy.graph.rules.batch_norm import BatchNormOptions
from convoy.graph.rules.convolution import Conv2dOptions
from convoy.graph.rules.linear import LinearOptions
from convoy.graph.rules.pooling import AdaptiveAvgPoolOptions, AvgPoolOptions, MaxPoolOptions
from convoy.graph.rules.shaping import DropoutOptions, FlattenOptions

KindAndOptions: TypeAlias = tuple[str, Any]


def options_of(module: nn.Module) -> KindAndOptions | None:
    """Kind and options of ``module`` in its present mode (train or eval); None where no rule computes what it does.

    Subclasses and modules with hooks have no rule: a rule would pass over what they add.
    """
    reader = _READERS.get(type(module))
    if reader is None or module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
        return None
    return reader(module)


def pair(value: Any) -> tuple[int, int]:
    """A number, or a sequence of one or two, as (height, width)."""
    if isinstance(value, int):
        return value, value
    first, *rest = value
    return first, rest[0] if rest else first


def padding_of(padding: Any, kernel: tuple[int, int], dilation: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Zeros on both sides, and those after the last row and column only: ((height, width), (height, width))."""
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding == "same":
        height, width = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
        return (height // 2, width // 2), (height % 2, width % 2)
    return pair(padding), (0, 0)


def max_pool_options(kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> MaxPoolOptions:
    """A missing stride is the kernel's size."""
    return MaxPoolOptions(pair(kernel), pair(stride or kernel), pair(padding), pair(dilation), ceil_mode)


def avg_pool_options(
    kernel: Any, stride: Any, padding: Any, ceil_mode: bool, count_include_pad: bool, divisor: int | None
) -> AvgPoolOptions:
    """A missing stride is the kernel's size."""
    return AvgPoolOptions(pair(kernel), pair(stride or kernel), pair(padding), ceil_mode, count_include_pad, divisor)


def adaptive_avg_pool_options(output: Any) -> AdaptiveAvgPoolOptions:
    """``output``: a number or None for both dimensions, or one for each."""
    height, width = output if isinstance(output, tuple | list) else (output, output)
    return AdaptiveAvgPoolOptions((height, width))


def _conv2d(m: nn.Conv2d) -> KindAndOptions | None:
    if m.padding_mode != "zeros":
        return None
    kernel, dilation = pair(m.kernel_size), pair(m.dilation)
    padding, after = padding_of(m.padding, kernel, dilation)
    bias = m.bias is not None
    return "conv2d", Conv2dOptions(
        m.in_channels, m.out_channels, kernel, pair(m.stride), padding, dilation, m.groups, bias, after
    )


def _batch_norm(m: nn.modules.batchnorm._BatchNorm) -> KindAndOptions:
    batch = m.training or (m.running_mean is None and m.running_var is None)
    return "batch_norm", BatchNormOptions(m.eps, m.momentum, batch, m.affine)


def _max_pool(m: nn.MaxPool2d) -> KindAndOptions | None:
    if m.return_indices:
        return None
    return "max_pool", max_pool_options(m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode)


def _avg_pool(m: nn.AvgPool2d) -> KindAndOptions:
    return "avg_pool", avg_pool_options(
        m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override
    )


def _leaky_relu(m: nn.LeakyReLU) -> KindAndOptions | None:
    return ("leaky_relu", LeakyReLUOptions(m.negative_slope)) if m.negative_slope >= 0 else None


_READERS: dict[type[nn.Module], Callable[[Any], KindAndOptions | None]] = {
    nn.Conv2d: _conv2d,
    nn.Linear: lambda m: ("linear", LinearOptions(m.in_features, m.out_features, m.bias is not None)),
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
    nn.ReLU: lambda m: ("relu", NoOptions()),
    nn.ReLU6: lambda m: ("relu6", NoOptions()),
    nn.LeakyReLU: _leaky_relu,
    nn.GELU: lambda m: ("gelu", GELUOptions(m.approximate)),
    nn.SiLU: lambda m: ("silu", NoOptions()),
    nn.Tanh: lambda m: ("tanh", NoOptions()),
    nn.Sigmoid: lambda m: ("sigmoid", NoOptions()),
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _avg_pool,
    nn.AdaptiveAvgPool2d: lambda m: ("adaptive_avg_pool", adaptive_avg_pool_options(m.output_size)),
    nn.Dropout: lambda m: ("dropout", DropoutOptions(m.training and m.p > 0)),
    nn.Flatten: lambda m: ("flatten", FlattenOptions(m.start_dim, m.end_dim)),
    nn.Identity: lambda m: ("identity", NoOptions()),
}
