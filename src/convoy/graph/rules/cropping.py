"""Slices and zero padding, as the parameter-free shortcuts of ResNets for CIFAR use them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch.nn.functional as F
from torch import Tensor

from convoy.errors import InternalError
from convoy.graph.graph import TensorSpec
from convoy.graph.rules.rule import Channelwise, Parameters, Saved, Tiling, require_images

Bounds: TypeAlias = tuple[int | None, int | None, int | None]
_ALL: Bounds = (None, None, None)


@dataclass(frozen=True, slots=True)
class SliceOptions:
    """``x[bounds[0], bounds[1], ...]``, each (start, stop, step) as in Python."""

    bounds: tuple[Bounds, ...]


@dataclass(frozen=True, slots=True)
class PadOptions:
    """``pad`` as PyTorch has it: (left, right, top, bottom, first channels, last channels) or less.
    Widths of rows and columns may be negative, which crops.
    """

    pad: tuple[int, ...]
    value: float = 0.0


class Slice(Channelwise[SliceOptions]):
    """The output is a view of the input. Saves sizes only."""

    kind = "getitem"

    def forward(self, options: SliceOptions, parameters: Parameters, inputs: Sequence[Tensor]) -> tuple[Tensor, Saved]:
        (x,) = inputs
        # A size that is not cut is taken from the gradient, so that what is saved also fits tiles.
        sizes = tuple(None if cut == _ALL else size for cut, size in zip(options.bounds, x.shape, strict=False))
        return x[_index(options)], Saved(facts=sizes)

    def input_grad(
        self, options: SliceOptions, parameters: Parameters, saved: Saved, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        shape = list(grad.shape)
        for dim, size in enumerate(saved.facts):
            shape[dim] = shape[dim] if size is None else size
        gradient = grad.new_zeros(shape)
        gradient[_index(options)] = grad
        return (gradient,)

    def tiling(self, options: SliceOptions) -> Tiling:
        whole = [cut == _ALL for cut in (*options.bounds, _ALL, _ALL)]
        return Tiling(whole[0], "own" if whole[1] else "none", "own" if whole[1] else "none")

    def flops(
        self, options: SliceOptions, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> tuple[int, int, int]:
        return 0, 0, 0

    def narrow_forward(
        self, options: SliceOptions, parameters: Parameters, inputs: Sequence[Tensor], lo: int, hi: int
    ) -> tuple[SliceOptions, Parameters, Sequence[Tensor]]:
        self._refuse_cut_channels(options)
        return super().narrow_forward(options, parameters, inputs, lo, hi)

    def narrow_input_grad(
        self, options: SliceOptions, parameters: Parameters, saved: Saved, grad: Tensor, lo: int, hi: int
    ) -> tuple[SliceOptions, Parameters, Saved, Tensor]:
        self._refuse_cut_channels(options)
        return super().narrow_input_grad(options, parameters, saved, grad, lo, hi)

    def _refuse_cut_channels(self, options: SliceOptions) -> None:
        if self.tiling(options).forward == "none":
            raise InternalError(f"a slice of channels, {options}, has no tiles")


class Pad(Channelwise[PadOptions]):
    """Of images, by a constant. Saves nothing."""

    kind = "pad"

    def forward(self, options: PadOptions, parameters: Parameters, inputs: Sequence[Tensor]) -> tuple[Tensor, Saved]:
        (x,) = inputs
        require_images(x, "pad")
        return F.pad(x, options.pad, value=options.value), Saved()

    def input_grad(
        self, options: PadOptions, parameters: Parameters, saved: Saved, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        return (F.pad(grad, tuple(-width for width in options.pad)),)

    def flops(
        self, options: PadOptions, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> tuple[int, int, int]:
        return 0, 0, 0

    def narrow_forward(
        self, options: PadOptions, parameters: Parameters, inputs: Sequence[Tensor], lo: int, hi: int
    ) -> tuple[PadOptions, Parameters, Sequence[Tensor]]:
        (x,), before = inputs, options.pad[4] if len(options.pad) == 6 else 0
        first, last = max(lo - before, 0), min(hi - before, x.shape[1])
        part = x[:, first:last] if first < last else x[:, :0]
        above = min(max(before - lo, 0), hi - lo)
        around = (*options.pad, 0, 0, 0, 0)[:4]
        return replace(options, pad=(*around, above, hi - lo - above - part.shape[1])), parameters, (part,)

    def narrow_input_grad(
        self, options: PadOptions, parameters: Parameters, saved: Saved, grad: Tensor, lo: int, hi: int
    ) -> tuple[PadOptions, Parameters, Saved, Tensor]:
        before = options.pad[4] if len(options.pad) == 6 else 0
        return replace(options, pad=options.pad[:4]), parameters, saved, grad[:, before + lo : before + hi]


def _index(options: SliceOptions) -> tuple[slice, ...]:
    return tuple(slice(*cut) for cut in options.bounds)
