"""What operations do to tiles: channels of a layer, and BatchNorm by partial sums over slices of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from convoy.graph.graph import TensorSpec
from convoy.graph.random import keyed
from convoy.graph.rules import batch_norm_sums as sums
from convoy.graph.rules.batch_norm import require_several_values
from convoy.graph.rules.rule import Saved, layout
from convoy.strategies.tasks.ops import Frame, Partition, Run
from convoy.strategies.tasks.units import Unit


def forward_from_all(unit: Unit, partition: Partition) -> Run:
    """Output channels of a layer that reads all channels of its input: the whole input → output tile, saved."""
    rule, options, parameters = unit.rule.rule, unit.rule.options, unit.rule.parameters
    channels = getattr(options, "out_channels", None) or options.out_features

    def run(frame: Frame, tile: int, args: list[Any]) -> Sequence[Any]:
        part, own, inputs = rule.narrow_forward(options, parameters, args, *partition.bounds(channels, tile))
        y, saved = rule.forward(part, own, inputs)
        return y, (part, own, saved)

    return run


def input_grad_from_all(unit: Unit, partition: Partition) -> Run:
    """Saved of any tile, the whole gradient of the output → the gradient of some input channels."""
    rule, options, parameters = unit.rule.rule, unit.rule.options, unit.rule.parameters
    channels = getattr(options, "in_channels", None) or options.in_features

    def run(frame: Frame, tile: int, args: list[Any]) -> Sequence[Any]:
        (_, _, saved), grad = args
        if grad is None:
            return (None,)
        bounds = partition.bounds(channels, tile)
        part, own, less, grad = rule.narrow_input_grad(options, parameters, saved, grad, *bounds)
        if rule.kind == "conv2d":
            less = _shaped(less)
        return rule.input_grad(part, own, less, grad)

    return run


def _shaped(saved: Saved) -> Saved:
    """Saved of a convolution for its input gradient, which asks for shape and layout of the input only. A kernel would
    copy a slice of channels into memory of its own first; this has nothing worth copying."""
    (x,) = saved.tensors
    empty = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=layout(x))
    return Saved((empty,), saved.facts)


def forward_from_own(unit: Unit, partition: Partition, channels: int) -> Run:
    """Channels of a layer that reads only these: tiles of the inputs → output tile, saved."""
    rule, options, parameters = unit.rule.rule, unit.rule.options, unit.rule.parameters

    def run(frame: Frame, tile: int, args: list[Any]) -> Sequence[Any]:
        part, own = options, parameters
        if parameters:
            nothing = args[0].new_empty((0, channels, 0, 0))
            part, own, _ = rule.narrow_forward(options, parameters, (nothing,), *partition.bounds(channels, tile))
        y, saved = rule.forward(part, own, args)
        return y, (part, own, saved)

    return run


def mask(unit: Unit, spec: TensorSpec, seed: int) -> Run:
    """The mask of a keyed dropout for the whole batch, laid out as its input is: any tile of it → mask."""
    bound = unit.rule

    def run(frame: Frame, tile: int, args: list[Any]) -> Sequence[Any]:
        (x,) = args
        like = x.new_empty((frame.samples, *spec.shape[1:]))
        with keyed(seed, frame.batch):
            return (bound.mask(like.to(memory_format=layout(x)) if x.dim() == 4 else like),)

    return run


# --- BatchNorm by partial sums: slices of the batch -------------------------------------------------------------


def moments(frame: Frame, tile: int, args: list[Any]) -> Sequence[Any]:
    """A slice of the input → its moments."""
    return (sums.moments(args[0]),)


def combine(unit: Unit) -> Run:
    """Moments of all slices → what normalising the batch comes to."""
    options, parameters = unit.rule.options, unit.rule.parameters

    def run(frame: Frame, tile: int, args: list[Any]) -> Sequence[Any]:
        total = sums.combine(args[0])
        require_several_values(total.mean.expand(total.count, -1))
        return (sums.affine(options, parameters, total),)

    return run


def running(units: Sequence[Unit]) -> Run:
    """What normalising came to, of each of ``units`` → moves their running statistics."""
    own = [(unit.rule.options, unit.rule.parameters) for unit in units]

    def run(frame: Frame, tile: int, args: list[Any]) -> Sequence[Any]:
        for (options, parameters), of in zip(own, args, strict=True):
            sums.update_running(options, parameters, of.total)
        return ()

    return run


def normalise(frame: Frame, tile: int, args: list[Any]) -> Sequence[Any]:
    """A slice, and what normalising the batch comes to → output, saved."""
    x, of = args
    return sums.normalise(x, of), (x, of)


def grad_sums(unit: Unit) -> Run:
    """Saved, gradient of the output → partial sums."""
    options = unit.rule.options

    def run(frame: Frame, tile: int, args: list[Any]) -> Sequence[Any]:
        (x, of), grad = args
        return (None if grad is None else sums.grad_sums(options, x, of, grad),)

    return run


def add_sums(unit: Unit) -> Run:
    """Saved, partial sums of all slices → what the input's gradient comes to, and the list of gradients of the trained
    parameters."""
    parameters, local = unit.rule.parameters, unit.local

    def run(frame: Frame, tile: int, args: list[Any]) -> Sequence[Any]:
        (_, of), parts = args
        if parts[0] is None:
            return None, [None] * len(local)
        total = sums.add_sums(parts)
        gradients = sums.weight_grad(parameters, total)
        return sums.grad_affine(of, total), [gradients[name] for name in local]

    return run


def normalise_grad(frame: Frame, tile: int, args: list[Any]) -> Sequence[Any]:
    """Saved, gradient of the output, and what the input's comes to → the input's gradient of the slice."""
    (x, _), grad, of = args
    return (None if grad is None else sums.input_grad(x, of, grad),)
