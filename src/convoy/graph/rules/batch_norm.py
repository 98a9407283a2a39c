"""BatchNorm over channels: x [N, C, ...], weight and bias [C] → y like x.

With batch statistics (training): y = (x − μ) · σ⁻¹ · weight + bias, with μ and σ² (biased) over all but the channel;
running_mean and running_var [C] move towards μ and the unbiased variance by ``momentum``, and num_batches_tracked
counts, all in place. Without (evaluation): μ and σ² are the running ones, and samples do not depend on each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from convoy.errors import ModelError
from convoy.graph.graph import TensorSpec
from convoy.graph.rules.rule import Channelwise, Parameters, Saved, Tiling, given, rows

_NATIVE = 0  # the number of PyTorch's own kernel among the back ends of aten::_batch_norm_impl_index


@dataclass(frozen=True, slots=True)
class BatchNormOptions:
    """``momentum`` None averages over all batches so far. ``affine``: whether there are weight and bias."""

    eps: float = 1e-5
    momentum: float | None = 0.1
    batch_statistics: bool = True
    affine: bool = True


class BatchNorm(Channelwise[BatchNormOptions]):
    """Saves its input, μ and σ⁻¹. The normalised values are not saved but computed again.

    The weight gradient of the evaluation form reads the running statistics as they are when it is computed.
    """

    kind = "batch_norm"
    has_weight = True

    def forward(
        self, options: BatchNormOptions, parameters: Parameters, inputs: Sequence[Tensor]
    ) -> tuple[Tensor, Saved]:
        (x,) = inputs
        if options.batch_statistics:
            require_several_values(x)
        momentum = count_batch(options, parameters)
        y, mean, invstd, reserve, backend = torch.ops.aten._batch_norm_impl_index(
            x,
            parameters.get("weight"),
            parameters.get("bias"),
            parameters.get("running_mean"),
            parameters.get("running_var"),
            options.batch_statistics,
            momentum,
            options.eps,
            torch.backends.cudnn.enabled,
        )
        return y, Saved((x, mean, invstd, reserve), (backend,))

    def input_grad(
        self, options: BatchNormOptions, parameters: Parameters, saved: Saved, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        return (_backward(options, parameters, saved, grad, (True, False, False))[0],)

    def weight_grad(
        self, options: BatchNormOptions, parameters: Parameters, saved: Saved, grad: Tensor
    ) -> dict[str, Tensor]:
        if not options.affine:
            return {}
        _, weight, bias = _backward(options, parameters, saved, grad, (False, True, True))
        return {"weight": weight, "bias": bias}

    def tiling(self, options: BatchNormOptions) -> Tiling:
        # A momentum of None reads a count that only the first tile would move.
        whole = options.batch_statistics and options.momentum is None
        return Tiling(not options.batch_statistics, "none" if whole else "own", "own")

    def flops(
        self, options: BatchNormOptions, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> tuple[int, int, int]:
        n = outputs[0].elements
        weight = 4 * n if options.affine else 0  # Σ g and Σ g·(x − μ)
        if not options.batch_statistics:
            return 2 * n, n, weight
        # Forward: Σ x (1), Σ (x − μ)² (3), multiply-add (2). Input gradient: the two sums (4), then the formula (5).
        return 6 * n, 9 * n, weight

    def narrow_samples(self, options: BatchNormOptions, saved: Saved, lo: int, hi: int) -> Saved:
        if options.batch_statistics:
            return super().narrow_samples(options, saved, lo, hi)  # refuses
        x, *statistics = saved.tensors
        return Saved((x[lo:hi], *statistics), saved.facts)

    def select_samples(self, options: BatchNormOptions, saved: Saved, index: Tensor) -> Saved:
        if options.batch_statistics:
            return super().select_samples(options, saved, index)  # refuses
        x, *statistics = saved.tensors
        return Saved((x[index], *statistics), saved.facts)

    def narrow_forward(
        self, options: BatchNormOptions, parameters: Parameters, inputs: Sequence[Tensor], lo: int, hi: int
    ) -> tuple[BatchNormOptions, Parameters, Sequence[Tensor]]:
        if self.tiling(options).forward == "none":
            return super(Channelwise, self).narrow_forward(options, parameters, inputs, lo, hi)  # refuses
        # The batch is counted once, with the tile that holds channel 0.
        count = {"num_batches_tracked": parameters.get("num_batches_tracked") if lo == 0 else None}
        return options, {**_of_channels(parameters, lo, hi), **count}, (inputs[0][:, lo:hi],)

    def narrow_input_grad(
        self, options: BatchNormOptions, parameters: Parameters, saved: Saved, grad: Tensor, lo: int, hi: int
    ) -> tuple[BatchNormOptions, Parameters, Saved, Tensor]:
        x, mean, invstd, _ = saved.tensors
        if mean.numel():  # PyTorch's own kernel saves nothing in evaluation
            mean, invstd = mean[lo:hi], invstd[lo:hi]
        # What another back end reserved belongs to all channels, so that tiles go to the native kernel.
        part = Saved((x[:, lo:hi], mean, invstd, x.new_empty(0, dtype=torch.uint8)), (_NATIVE,))
        return options, _of_channels(parameters, lo, hi), part, grad[:, lo:hi]

    def narrow_weight_grad(
        self, options: BatchNormOptions, parameters: Parameters, saved: Saved, grad: Tensor, lo: int, hi: int
    ) -> tuple[BatchNormOptions, Parameters, Saved, Tensor]:
        return self.narrow_input_grad(options, parameters, saved, grad, lo, hi)


def require_several_values(x: Tensor) -> None:
    """Refuse a batch whose variance is not defined."""
    if x.numel() // max(x.shape[1], 1) < 2:
        raise ModelError(
            f"BatchNorm in training needs more than one value per channel, got a batch of shape {tuple(x.shape)}",
            hint="use a larger batch, or drop the last, smaller one",
        )


def count_batch(options: BatchNormOptions, parameters: Parameters) -> float:
    """Count a training batch in num_batches_tracked, in place; returns the momentum to use."""
    if not options.batch_statistics or parameters.get("running_mean") is None:
        return options.momentum or 0.0
    count = parameters.get("num_batches_tracked")
    if count is not None:
        count.add_(1)
    if options.momentum is not None:
        return options.momentum
    return 1.0 / float(given(parameters, "num_batches_tracked"))


def _of_channels(parameters: Parameters, lo: int, hi: int) -> Parameters:
    return rows({name: t for name, t in parameters.items() if name != "num_batches_tracked"}, lo, hi)


def _backward(
    options: BatchNormOptions, parameters: Parameters, saved: Saved, grad: Tensor, mask: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    x, mean, invstd, reserve = saved.tensors
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._batch_norm_impl_index_backward(
        saved.facts[0],
        x,
        grad,
        parameters.get("weight"),
        parameters.get("running_mean"),
        parameters.get("running_var"),
        mean,
        invstd,
        options.batch_statistics,
        options.eps,
        mask,
        reserve,
    )
    return gradients
