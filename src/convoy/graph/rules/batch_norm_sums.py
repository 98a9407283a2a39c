"""BatchNorm by partial sums: slices of the batch are summed apart, the sums combined in a fixed order, and the slices
finished apart.

    forward    moments(slice) → combine → normalise(slice), and update_running once
    backward   grad_sums(slice) → add_sums → input_grad(slice); the combined sums are the weight gradient

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
from convoy.graph.rules.rule import Parameters


@dataclass(frozen=True, slots=True)
class Moments:
    """Of ``count`` values per channel: their mean [C] and Σ (x − mean)² [C]."""

    count: int
    mean: Tensor
    deviation: Tensor

    def invstd(self, eps: float) -> Tensor:
        """σ⁻¹ [C] from the biased variance."""
        return torch.rsqrt(self.deviation / self.count + eps)


@dataclass(frozen=True, slots=True)
class GradSums:
    """Σ g [C] and Σ g·x̂ [C]: the gradients of bias and weight."""

    grad: Tensor
    grad_normalised: Tensor


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
    means = torch.stack([part.mean for part in parts])
    counts = torch.tensor([part.count for part in parts], dtype=means.dtype, device=means.device)[:, None]
    mean = (means * (counts / count)).sum(0)
    between = (means - mean).square_().mul_(counts).sum(0)
    return Moments(count, mean, torch.stack([part.deviation for part in parts]).sum(0).add_(between))


def update_running(options: BatchNormOptions, parameters: Parameters, total: Moments) -> None:
    """Move the running statistics in place, once per batch."""
    momentum = count_batch(options, parameters)
    mean, variance = parameters.get("running_mean"), parameters.get("running_var")
    if mean is not None:
        mean.mul_(1 - momentum).add_(total.mean.to(mean.dtype), alpha=momentum)
    if variance is not None:
        unbiased = (total.deviation / (total.count - 1)).to(variance.dtype)
        variance.mul_(1 - momentum).add_(unbiased, alpha=momentum)


def normalise(options: BatchNormOptions, parameters: Parameters, x: Tensor, total: Moments) -> Tensor:
    """Output of one slice, in its type."""
    scale, shift = total.invstd(options.eps), parameters.get("bias")
    weight = parameters.get("weight")
    if weight is not None:
        scale = scale * weight
    shift = -total.mean * scale if shift is None else shift - total.mean * scale
    return torch.addcmul(_along(shift, x), _wide(x), _along(scale, x)).to(x.dtype)


def grad_sums(options: BatchNormOptions, x: Tensor, total: Moments, grad: Tensor) -> GradSums:
    """Of one slice and the gradient of its output."""
    invstd = total.invstd(options.eps)
    _, grad_normalised, summed = torch.ops.aten.native_batch_norm_backward(
        _wide(grad), _wide(x), None, None, None, total.mean, invstd, True, options.eps, (False, True, True)
    )
    return GradSums(summed, grad_normalised)


def add_sums(parts: Sequence[GradSums]) -> GradSums:
    """Sums over all slices, in the order given."""
    if not parts:
        raise InternalError("no sums to add")
    if len(parts) == 1:
        return parts[0]
    return GradSums(
        torch.stack([part.grad for part in parts]).sum(0),
        torch.stack([part.grad_normalised for part in parts]).sum(0),
    )


def input_grad(
    options: BatchNormOptions, parameters: Parameters, x: Tensor, total: Moments, sums: GradSums, grad: Tensor
) -> Tensor:
    """Gradient of one slice's input: (g − Σg/n − x̂ · Σ(g·x̂)/n) · σ⁻¹ · weight."""
    invstd = total.invstd(options.eps)
    weight = parameters.get("weight")
    scale = invstd if weight is None else invstd * weight
    slope = scale * sums.grad_normalised * invstd / -total.count
    shift = scale * sums.grad / -total.count - slope * total.mean
    result = torch.addcmul(_along(shift, x), _wide(x), _along(slope, x))  # scale·g + slope·x + shift: two passes
    return result.addcmul_(_wide(grad), _along(scale, x)).to(x.dtype)


def weight_grad(parameters: Parameters, sums: GradSums) -> dict[str, Tensor]:
    """Gradients by local parameter name, from the sums over all slices."""
    both = {"weight": sums.grad_normalised, "bias": sums.grad}
    return {name: g.to(p.dtype) for name, g in both.items() if (p := parameters.get(name)) is not None}


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _along(values: Tensor, x: Tensor) -> Tensor:
    """Per-channel values [C], shaped to broadcast over x."""
    return values.view(-1, *[1] * (x.dim() - 2))
