"""Into which groups of output channels each unit is cut.

A convolution is cut by its output channels in the forward pass (each group reads the whole input), by its input
channels in the feature-map gradient (each group reads the whole gradient), by rows of its weight in the weight
gradient. What works on single channels (BatchNorm, ReLU, pooling, add, depthwise convolutions) has the same groups,
so that it needs of its neighbour only the group that is ready.
"""

from __future__ import annotations

from collections.abc import Mapping

from convoy.graph.graph import TensorSpec
from convoy.schedule.action import Action
from convoy.strategies.concurrent.schedule import CONV, NONCONV, Phase, Sort
from convoy.strategies.tasks.ops import WHOLE, Partition
from convoy.strategies.tasks.tiles import keeps_channels
from convoy.strategies.tasks.units import Unit, Units

CHANNELS_PER_GROUP = 16
"""Fewer would leave a kernel's vectors empty."""
_CONV = frozenset(("conv2d", "linear"))
_PHASES: Mapping[str, Phase] = {
    **dict.fromkeys("FMCKE", "forward"),
    **dict.fromkeys("IASTB", "feature-map gradient"),
    "G": "weight gradient",
    "L": "loss",
    "U": "update",
}


def is_conv(unit: Unit) -> bool:
    """Whether a unit counts as CONV: convolutions and fully-connected layers, alone or in a stretch without a rule."""
    if unit.bound is not None:
        return unit.bound.rule.kind in _CONV
    nodes = unit.segment.nodes if unit.segment is not None else ()
    return any("conv" in node.kind or node.kind in _CONV for node in nodes)


def sort_of(kind: str, unit: Unit | None) -> Sort:
    """CONV are the passes of convolutions; joining their groups, summing gradients and updates are not."""
    return CONV if unit is not None and kind in "FIGB" and is_conv(unit) else NONCONV


def phase_of(action: Action) -> Phase:
    """The phase of the training step that an action belongs to."""
    if action.kind == "J":
        return "forward" if action.subject.startswith("y.") else "feature-map gradient"
    return _PHASES[action.kind]


def groups(units: Units, count: int) -> dict[str, Partition]:
    """How each unit is cut into ``count`` groups; whole where it cannot be."""
    if count == 1:
        return {unit.name: WHOLE for unit in units.units}
    cut = Partition("channels", count)
    return {unit.name: cut if _can_be_cut(unit, units, count * CHANNELS_PER_GROUP) else WHOLE for unit in units.units}


def why_whole(units: Units, count: int) -> str:
    """What to say where no unit at all could be cut into ``count`` groups."""
    shapes = [units.specs[name].shape for unit in units.units for name in unit.outputs if name in units.specs]
    widest, least = max((shape[1] for shape in shapes if len(shape) == 4), default=0), count * CHANNELS_PER_GROUP
    reason = f"no layer can be cut into {count} groups of channels"
    if widest < least:
        reason = (
            f"{count} groups of at least {CHANNELS_PER_GROUP} channels need {least}, and the widest layer has {widest}"
        )
    return f"every layer stays whole: {reason}"


def _can_be_cut(unit: Unit, units: Units, least: int) -> bool:
    specs = units.specs
    if unit.bound is None or any(name not in specs for name in (*unit.inputs, *unit.outputs)):
        return False
    inputs, output = [specs[name] for name in unit.inputs], specs[unit.outputs[0]]
    if len(output.shape) != 4 or output.shape[1] < least:
        return False
    if unit.rule.rule.kind != "conv2d":
        return keeps_channels(unit, inputs, output)
    if unit.rule.options.groups == 1:
        return unit.inputs[0] not in units.needs or inputs[0].shape[1] >= least
    return _depthwise(unit, inputs[0], output)


def _depthwise(unit: Unit, image: TensorSpec, output: TensorSpec) -> bool:
    return bool(unit.rule.options.groups == image.shape[1] == output.shape[1])
