"""Layers that add, join or reshape: add, cat, dropout with a given mask, flatten, identity. See also ``cropping``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from convoy.errors import InternalError
from convoy.graph.graph import TensorSpec
from convoy.graph.rules.activations import NoOptions
from convoy.graph.rules.rule import WHOLE, Channelwise, Parameters, Rule, Saved, Tiling


@dataclass(frozen=True, slots=True)
class AddOptions:
    """a + alpha · b."""

    alpha: float = 1


@dataclass(frozen=True, slots=True)
class CatOptions:
    dim: int = 0


@dataclass(frozen=True, slots=True)
class DropoutOptions:
    """``active``: in training, with p > 0."""

    active: bool = True


@dataclass(frozen=True, slots=True)
class FlattenOptions:
    start_dim: int = 1
    end_dim: int = -1


class Add(Channelwise[AddOptions]):
    """Of two tensors. Shapes that differ are broadcast, but then there are no tiles."""

    kind = "add"

    def forward(self, options: AddOptions, parameters: Parameters, inputs: Sequence[Tensor]) -> tuple[Tensor, Saved]:
        a, b = inputs
        shapes = None if a.shape == b.shape else (a.shape, b.shape)
        return torch.add(a, b, alpha=options.alpha), Saved(facts=(shapes, (a.dtype, b.dtype)))

    def input_grad(
        self, options: AddOptions, parameters: Parameters, saved: Saved, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        shapes, dtypes = saved.facts
        gradients = [grad, grad if options.alpha == 1 else grad * options.alpha]
        if shapes is not None:
            gradients = [g.sum_to_size(shape) for g, shape in zip(gradients, shapes, strict=True)]
        return tuple(g.to(dtype) for g, dtype in zip(gradients, dtypes, strict=True))

    def flops(
        self, options: AddOptions, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> tuple[int, int, int]:
        n = outputs[0].elements
        broadcast = sum(n for x in inputs if x.shape != outputs[0].shape)
        return (n, broadcast, 0) if options.alpha == 1 else (2 * n, n + broadcast, 0)

    def narrow_samples(self, options: AddOptions, saved: Saved, lo: int, hi: int) -> Saved:
        _refuse_broadcast(saved.facts[0])
        return saved

    def select_samples(self, options: AddOptions, saved: Saved, index: Tensor) -> Saved:
        _refuse_broadcast(saved.facts[0])
        return saved

    def narrow_forward(
        self, options: AddOptions, parameters: Parameters, inputs: Sequence[Tensor], lo: int, hi: int
    ) -> tuple[AddOptions, Parameters, Sequence[Tensor]]:
        _refuse_broadcast(None if inputs[0].shape == inputs[1].shape else tuple(x.shape for x in inputs))
        return super().narrow_forward(options, parameters, inputs, lo, hi)

    def narrow_input_grad(
        self, options: AddOptions, parameters: Parameters, saved: Saved, grad: Tensor, lo: int, hi: int
    ) -> tuple[AddOptions, Parameters, Saved, Tensor]:
        _refuse_broadcast(saved.facts[0])
        return super().narrow_input_grad(options, parameters, saved, grad, lo, hi)


def _refuse_broadcast(shapes: tuple[torch.Size, ...] | None) -> None:
    if shapes is not None:
        raise InternalError(f"an add that broadcasts {' and '.join(str(tuple(s)) for s in shapes)} has no tiles")


class Cat(Rule[CatOptions]):
    """Of any number of tensors. Its gradients are views of ``grad``, so that only the forward pass has tiles."""

    kind = "cat"

    def forward(self, options: CatOptions, parameters: Parameters, inputs: Sequence[Tensor]) -> tuple[Tensor, Saved]:
        facts = tuple((x.shape[options.dim], x.dtype) for x in inputs)
        return torch.cat(tuple(inputs), options.dim), Saved(facts=facts)

    def input_grad(
        self, options: CatOptions, parameters: Parameters, saved: Saved, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        sizes = [size for size, _ in saved.facts]
        parts = torch.split(grad, sizes, options.dim)
        return tuple(part.to(dtype) for part, (_, dtype) in zip(parts, saved.facts, strict=True))

    def tiling(self, options: CatOptions) -> Tiling:
        if options.dim < 1:  # along the batch, or counted from an end that is not known here
            return WHOLE
        return Tiling(samples=True, forward="own" if options.dim == 1 else "none", input_grad="none")

    def flops(
        self, options: CatOptions, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> tuple[int, int, int]:
        return 0, 0, 0

    def narrow_forward(
        self, options: CatOptions, parameters: Parameters, inputs: Sequence[Tensor], lo: int, hi: int
    ) -> tuple[CatOptions, Parameters, Sequence[Tensor]]:
        if options.dim != 1:
            return super().narrow_forward(options, parameters, inputs, lo, hi)  # refuses
        parts, start = [], 0
        for x in inputs:
            first, last = max(lo - start, 0), min(hi - start, x.shape[1])
            if first < last:
                parts.append(x[:, first:last])
            start += x.shape[1]
        return options, parameters, tuple(parts)


class Dropout(Channelwise[DropoutOptions]):
    """x · mask. Inputs: x and a mask of its shape and type that holds 0 where an element is dropped and 1 / (1 − p)
    elsewhere; x alone where dropout is not active. The mask has no gradient."""

    kind = "dropout"

    def forward(
        self, options: DropoutOptions, parameters: Parameters, inputs: Sequence[Tensor]
    ) -> tuple[Tensor, Saved]:
        if not options.active:
            return inputs[0], Saved()
        if len(inputs) != 2:
            raise InternalError("an active dropout needs its mask as second input")
        x, mask = inputs
        return x * mask, Saved((mask,))

    def input_grad(
        self, options: DropoutOptions, parameters: Parameters, saved: Saved, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        return (grad * saved.tensors[0], None) if options.active else (grad,)

    def flops(
        self, options: DropoutOptions, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> tuple[int, int, int]:
        n = outputs[0].elements if options.active else 0
        return n, n, 0


class Flatten(Rule[FlattenOptions]):
    """Dimensions start..end become one, in the order of their indices whatever the layout in memory."""

    kind = "flatten"

    def forward(
        self, options: FlattenOptions, parameters: Parameters, inputs: Sequence[Tensor]
    ) -> tuple[Tensor, Saved]:
        (x,) = inputs
        return torch.flatten(x, options.start_dim, options.end_dim), Saved(facts=(tuple(x.shape[1:]),))

    def input_grad(
        self, options: FlattenOptions, parameters: Parameters, saved: Saved, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        return (grad.reshape(-1, *saved.facts[0]),)

    def tiling(self, options: FlattenOptions) -> Tiling:
        return WHOLE if options.start_dim < 1 else Tiling(samples=True, forward="none", input_grad="none")

    def flops(
        self, options: FlattenOptions, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> tuple[int, int, int]:
        return 0, 0, 0


class Identity(Channelwise[NoOptions]):
    kind = "identity"

    def forward(self, options: NoOptions, parameters: Parameters, inputs: Sequence[Tensor]) -> tuple[Tensor, Saved]:
        return inputs[0], Saved()

    def input_grad(
        self, options: NoOptions, parameters: Parameters, saved: Saved, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        return (grad,)

    def flops(
        self, options: NoOptions, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> tuple[int, int, int]:
        return 0, 0, 0
