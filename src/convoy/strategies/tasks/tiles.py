"""Into which tiles each unit is cut. Decided from shapes alone, so that it is the same on every run and machine.

Most units go by slices of the batch, so that a slice runs through several of them while it is in the cache. A
convolution or linear layer whose weights outweigh its images goes by output channels instead: each slice would read
(and the kernel reorder) all weights once more, and its gradients would have to be summed. What works on single
channels follows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from convoy.graph.graph import TensorSpec
from convoy.strategies.tasks.ops import WHOLE, Partition
from convoy.strategies.tasks.units import Unit, Units

FLOPS_PER_SECOND = 6e10
BYTES_PER_SECOND = 8e9
"""One core, roughly: good enough to tell large from small."""
HEAVY_CALL_SECONDS = 2e-4
"""What a layer with weights takes besides its operations: they are reordered in every call."""
CALL_SECONDS = 1.5e-4
"""The same of any other operation, with its share of handing actions over."""
TINY_SECONDS = 2e-4
"""Units that take less stay whole, unless what they read comes in slices already."""
UNEVEN = {1: 1.15, 2: 1.04, 3: 1.03}
"""Tiles a worker → how much longer a mini-batch takes than if all workers always had work. With several, a slow worker
takes fewer."""
CHANNELS_PER_TILE = 16
_CHANNELWISE = frozenset(
    (
        *("batch_norm", "relu", "relu6", "leaky_relu", "gelu", "silu", "tanh", "sigmoid", "dropout", "identity"),
        *("max_pool", "avg_pool", "adaptive_avg_pool", "add"),
    )
)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds of one core for the whole mini-batch."""

    forward: float
    input_grad: float
    weight_grad: float

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(
            self.forward + other.forward, self.input_grad + other.input_grad, self.weight_grad + other.weight_grad
        )

    @property
    def total(self) -> float:
        return self.forward + self.input_grad + self.weight_grad


def estimate(unit: Unit, specs: Mapping[str, TensorSpec]) -> Estimate:
    """By operations and bytes; nothing for what is not known."""
    inputs = [specs[name] for name in unit.inputs if name in specs]
    outputs = [specs[name] for name in unit.outputs if name in specs]
    moved = (sum(s.bytes for s in inputs) + sum(s.bytes for s in outputs)) / BYTES_PER_SECOND
    if unit.bound is None or len(inputs) != len(unit.inputs) or not outputs:
        return Estimate(moved, moved, 0.0)
    flops = unit.bound.rule.flops(unit.bound.options, inputs, outputs)
    return Estimate(*(max(count / FLOPS_PER_SECOND, moved) for count in flops))


def slices(units: Units, workers: int, batch: int) -> int:
    """Slices for a mini-batch of ``batch`` samples: a multiple of ``workers``, or 1 where calls would cost more than
    the slices gain. A whole batch is shared too, but in the backward pass alone: weight gradients wait for nobody."""
    if workers == 1:
        return 1
    work, called = Estimate(0.0, 0.0, 0.0), Estimate(0.0, 0.0, 0.0)
    for unit in units.units:
        work += estimate(unit, units.specs)
        called += calls(unit)
    whole = work + called
    backward = max(whole.input_grad, (whole.input_grad + whole.weight_grad) / workers)
    expected = {1: whole.forward + backward}
    for each, uneven in UNEVEN.items():
        count = each * workers
        if count <= batch:
            expected[count] = (work.total + count * called.total) / workers * uneven
    return min(expected, key=lambda count: expected[count])


def calls(unit: Unit) -> Estimate:
    """Seconds that a tile of ``unit`` takes whatever its size."""
    if unit.bound is None:
        return Estimate(0.0, 0.0, 0.0)
    if unit.parameters and not moments_needed(unit):
        return Estimate(HEAVY_CALL_SECONDS, HEAVY_CALL_SECONDS, HEAVY_CALL_SECONDS)
    one = CALL_SECONDS * (1 + moments_needed(unit))
    return Estimate(one, one, 0.0)


def moments_needed(unit: Unit) -> bool:
    """Whether ``unit`` couples the samples of a batch by its mean and variance."""
    return unit.rule.rule.kind == "batch_norm" and bool(unit.rule.options.batch_statistics)


def partitions(units: Units, count: int) -> dict[str, Partition]:
    """How each unit is cut into ``count`` tiles, by name."""
    if count == 1:
        return {unit.name: WHOLE for unit in units.units}
    specs, batch = units.specs, units.graph.batch_size
    found: dict[str, Partition] = {}
    made: dict[str, Partition] = {}  # by value
    for unit in units.units:
        cut = _partition(unit, specs, batch, count, made)
        found[unit.name] = cut
        made.update(dict.fromkeys(unit.outputs, cut))
    return found


def _partition(
    unit: Unit, specs: Mapping[str, TensorSpec], batch: int, count: int, made: Mapping[str, Partition]
) -> Partition:
    if unit.bound is None or any(name not in specs for name in (*unit.inputs, *unit.outputs)):
        return WHOLE
    inputs, output = [specs[name] for name in unit.inputs], specs[unit.outputs[0]]
    before = [made.get(name, WHOLE) for name in unit.inputs]
    sliced = any(cut.axis == "samples" for cut in before)
    work = estimate(unit, specs)
    if work.forward < TINY_SECONDS and not sliced:
        channelwise = before[0].axis == "channels" and keeps_channels(unit, inputs, output)
        return before[0] if channelwise else WHOLE
    if _weights_outweigh(unit, inputs[0], output, count):
        return Partition("channels", count)
    if before[0].axis == "channels" and keeps_channels(unit, inputs, output):
        return before[0]
    return Partition("samples", count) if _sliceable(unit, inputs, output, batch) else WHOLE


def _weights_outweigh(unit: Unit, image: TensorSpec, output: TensorSpec, count: int) -> bool:
    kind, options = unit.rule.rule.kind, unit.rule.options
    if kind not in ("conv2d", "linear") or getattr(options, "groups", 1) != 1:
        return False
    if len(image.shape) != (4 if kind == "conv2d" else 2) or not unit.parameters:
        return False
    if min(image.shape[1], output.shape[1]) < CHANNELS_PER_TILE * count:
        return False
    weights = 4 * image.shape[1] * output.shape[1] * (prod(options.kernel) if kind == "conv2d" else 1)
    return count * weights > count * image.bytes + output.bytes


def keeps_channels(unit: Unit, inputs: Sequence[TensorSpec], output: TensorSpec) -> bool:
    """Whether channel c of everything in ``unit`` comes from channel c alone."""
    tiling = unit.rule.tiling
    if unit.rule.rule.kind not in _CHANNELWISE or tiling.forward != "own" or tiling.input_grad != "own":
        return False
    if any(spec.shape != inputs[0].shape for spec in inputs):
        return False
    return len(output.shape) > 1 and output.shape[1] == inputs[0].shape[1]


def _sliceable(unit: Unit, inputs: list[TensorSpec], output: TensorSpec, batch: int) -> bool:
    if not unit.rule.tiling.samples and not moments_needed(unit):
        return False
    if any(not spec.shape or spec.shape[0] != batch for spec in (*inputs, output)):
        return False
    return unit.rule.rule.kind != "add" or all(spec.shape == output.shape for spec in inputs)
