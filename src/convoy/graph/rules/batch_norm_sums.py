"""BatchNorm by partial sums: slices of the batch are summed apart, the sums combined in a fixed order, and the slices
finished apart.

    forward    moments(slice) → combine → affine → normalise(slice), and update_running once
    backward   grad_sums(slice) → add_sums → grad_affine → input_grad(slice); the sums are the weight gradient

Within 1e-5 of the kernel for float32 (relative to the largest value; 1e-12 for float64), not bit for bit: the sums
have another order. For the same slices in the same order the bits do not depend on who computed what, or when.
Sums of a bfloat16 input are held in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from convoy.errors import InternalError
from convoy.graph.rules.batch_norm import BatchNormOptions, count_batch
from convoy.graph.rules.rule import Parameters, Saved


@dataclass(frozen=True, slots=True)
class Moments:
    """Of ``count`` values per channel: their mean [C] and Σ (x − mean)² [C]."""

    count: int
    mean: Tensor
    deviation: Tensor


@dataclass(frozen=True, slots=True)
class Affine:
    """What normalising a batch comes to: y = scale·x + shift. All [C]; ``invstd`` is σ⁻¹, of the biased variance."""

    total: Moments
    invstd: Tensor
    scale: Tensor
    shift: Tensor


@dataclass(frozen=True, slots=True)
class GradSums:
    """Σ g [C] and Σ g·x̂ [C]: the gradients of bias and weight."""

    grad: Tensor
    grad_normalised: Tensor


@dataclass(frozen=True, slots=True)
class GradAffine:
    """What the gradient of the input comes to: scale·g + slope·x + shift. All [C]."""

    scale: Tensor
    slope: Tensor
    shift: Tensor


def moments(x: Tensor) -> Moments:
    """Of one slice x [n, C, ...]."""
    mean, variance = torch.ops.aten.batch_norm_update_stats(_wide(x), None, None, 0.0)  # 10 times as fast as var_mean
    count = x.numel() // x.shape[1]
    return Moments(count, mean, variance * count)


def combine(parts: Sequence[Moments]) -> Moments:
    """Moments of all slices together, in the order given.

    Σ (x − m)² = Σ_i [Σ (x − m_i)² + n_i (m_i − m)²], as Chan, Golub and LeVeque (1979): stable where a sum of squares
    would cancel.
    """
    if not parts:
        raise InternalError("no moments to combine")
    if len(parts) == 1:
        return parts[0]
    count = sum(part.count for part in parts)
    first, *rest = parts
    mean = first.mean * (first.count / count)
    for part in rest:
        mean.add_(part.mean, alpha=part.count / count)
    apart = first.mean - mean
    deviation = torch.addcmul(first.deviation, apart, apart, value=first.count)
    for part in rest:
        apart = part.mean - mean
        deviation.add_(part.deviation).addcmul_(apart, apart, value=part.count)
    return Moments(count, mean, deviation)


def affine(options: BatchNormOptions, parameters: Parameters, total: Moments) -> Affine:
    """From the moments of the batch, once for all slices."""
    weight, bias = parameters.get("weight"), parameters.get("bias")
    invstd = torch.rsqrt(total.deviation / total.count + options.eps)
    scale = invstd if weight is None else invstd * weight
    shift = -total.mean * scale if bias is None else torch.addcmul(bias, total.mean, scale, value=-1.0)
    return Affine(total, invstd, scale, shift)


def affine_of(options: BatchNormOptions, parameters: Parameters, saved: Saved) -> Affine:
    """The same from what ``BatchNorm.forward`` saved of a whole batch."""
    x, mean, invstd, _ = saved.tensors
    count = x.numel() // x.shape[1]
    return affine(options, parameters, Moments(count, mean, (invstd.pow(-2) - options.eps) * count))


def update_running(options: BatchNormOptions, parameters: Parameters, total: Moments) -> None:
    """Move the running statistics in place, once per batch."""
    momentum = count_batch(options, parameters)
    mean, variance = parameters.get("running_mean"), parameters.get("running_var")
    if mean is not None:
        mean.mul_(1 - momentum).add_(total.mean.to(mean.dtype), alpha=momentum)
    if variance is not None:
        unbiased = (total.deviation / (total.count - 1)).to(variance.dtype)
        variance.mul_(1 - momentum).add_(unbiased, alpha=momentum)


def normalise(x: Tensor, of: Affine) -> Tensor:
    """Output of one slice, in its type."""
    return torch.addcmul(_along(of.shift, x), _wide(x), _along(of.scale, x)).to(x.dtype)


def grad_sums(options: BatchNormOptions, x: Tensor, of: Affine, grad: Tensor) -> GradSums:
    """Of one slice and the gradient of its output."""
    _, grad_normalised, summed = torch.ops.aten.native_batch_norm_backward(
        _wide(grad), _wide(x), None, None, None, of.total.mean, of.invstd, True, options.eps, (False, True, True)
    )
    return GradSums(summed, grad_normalised)


def add_sums(parts: Sequence[GradSums]) -> GradSums:
    """Sums over all slices, in the order given."""
    if not parts:
        raise InternalError("no sums to add")
    if len(parts) == 1:
        return parts[0]
    first, second, *rest = parts
    grad, grad_normalised = first.grad + second.grad, first.grad_normalised + second.grad_normalised
    for part in rest:
        grad.add_(part.grad)
        grad_normalised.add_(part.grad_normalised)
    return GradSums(grad, grad_normalised)


def grad_affine(of: Affine, sums: GradSums) -> GradAffine:
    """From the sums of the batch, once for all slices: (g − Σg/n − x̂ · Σ(g·x̂)/n) · σ⁻¹ · weight."""
    count, scale = of.total.count, of.scale
    slope = (scale * of.invstd).mul_(sums.grad_normalised).div_(-count)
    return GradAffine(scale, slope, (scale * sums.grad).div_(-count).addcmul_(slope, of.total.mean, value=-1.0))


def input_grad(x: Tensor, of: GradAffine, grad: Tensor) -> Tensor:
    """Gradient of one slice's input, in two passes."""
    result = torch.addcmul(_along(of.shift, x), _wide(x), _along(of.slope, x))
    return result.addcmul_(_wide(grad), _along(of.scale, x)).to(x.dtype)


def weight_grad(parameters: Parameters, sums: GradSums) -> dict[str, Tensor]:
    """Gradients by local parameter name, from the sums over all slices."""
    both = {"weight": sums.grad_normalised, "bias": sums.grad}
    return {name: g.to(p.dtype) for name, g in both.items() if (p := parameters.get(name)) is not None}


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _along(values: Tensor, x: Tensor) -> Tensor:
    """Per-channel values [C], shaped to broadcast over x."""
    return values.view(-1, *[1] * (x.dim() - 2))
