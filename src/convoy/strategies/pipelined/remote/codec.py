"""The values that cross between stages and from the driver, as what a message can hold, and back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from convoy.engines.ray.failure import unexpected
from convoy.errors import RunError
from convoy.schedule.action import Ref
from convoy.strategies.pipelined.program import Fed, Handed

_CALLED = {"x": "activations", "g": "gradients"}


def called(ref: Ref) -> str:
    """ "the activations from stage 1 to stage 2"."""
    if ref.name[0] not in _CALLED:
        return f"the inputs of stage {ref.name[1:]}"
    sender, _, receiver = ref.name[1:].partition(">")
    return f"the {_CALLED[ref.name[0]]} from stage {sender} to stage {receiver}"


def encode(ref: Ref, value: Any) -> Any:
    """``x``: what a stage hands on; ``g``: the gradients that come back."""
    if ref.name[0] == "x":
        return {"tensors": list(value.tensors), "needs_grad": list(value.needs_grad)}
    if ref.name[0] == "g":
        return list(value)
    raise unexpected(str(ref))


def decode(ref: Ref, value: Any, wanted: Mapping[str, int]) -> Any:
    """``wanted``: name of a value → how many tensors it has to have."""
    if ref.name[0] == "i":
        return Fed(value["values"], value["target"], value["share"])
    if ref.name[0] == "x":
        tensors, flags = value["tensors"], value["needs_grad"]
        _count(ref, tensors, wanted)
        pairs = list(zip(tensors, flags, strict=False))
        if len(flags) != len(tensors) or any(flag and not isinstance(t, Tensor) for t, flag in pairs):
            raise RunError(f"{ref} came with flags that do not fit its tensors")
        return Handed(tuple(tensors), tuple(flags))
    if ref.name[0] == "g":
        _count(ref, value, wanted)
        return value
    raise unexpected(str(ref))


def encode_fed(fed: Fed, inputs: Collection[str], target: bool) -> dict[str, Any]:
    """What one stage needs of a part: the model inputs it reads, and the target where it computes the loss."""
    return {
        "values": {name: value for name, value in fed.values.items() if name in inputs},
        "target": fed.target if target else None,
        "share": fed.share,
    }


def _count(ref: Ref, tensors: Any, wanted: Mapping[str, int]) -> None:
    if not isinstance(tensors, list) or len(tensors) != wanted.get(ref.name):
        raise RunError(f"{ref} came with {len(tensors)} tensors, and {wanted.get(ref.name)} cross there")
