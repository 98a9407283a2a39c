"""What a stage knows, as it travels: weights, estimates, the optimizer's state, and the flags of its modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from convoy.engines.ray.message import pack
from convoy.errors import RunError
from convoy.graph.split import Segment


def stage_state(segment: Segment, optimizer: Optimizer) -> dict[str, Any]:
    """By the user's names; tensors are the stage's own, not copies."""
    known = optimizer.state
    return {
        "parameters": dict(segment.parameters),
        "buffers": dict(segment.buffers),
        "optimizer": {name: dict(known[p]) for name, p in segment.parameters.items() if p in known},
        "training": [module.training for module in segment.module.modules()],
        "requires_grad": [p.requires_grad for p in segment.parameters.values()],
    }


def fingerprint(state: Mapping[str, Any]) -> bytes:
    """Equal for equal states."""
    message = pack(state, "the state of a stage")
    return blake2b(repr(message.header).encode() + message.array.tobytes(), digest_size=16).digest()


def put_states(segments: Sequence[Segment], optimizer: Optimizer, states: Sequence[Mapping[str, Any]]) -> None:
    """Take over all of ``states``, or none: each is checked before the first is written."""
    for segment, state in zip(segments, states, strict=True):
        _check(segment, state)
    for segment, state in zip(segments, states, strict=True):
        _put(segment, optimizer, state)


def _check(segment: Segment, state: Mapping[str, Any]) -> None:
    for part, own in (("parameters", segment.parameters), ("buffers", segment.buffers)):
        came = state[part]
        if list(came) != list(own):
            raise RunError(f"a stage with {part} {', '.join(own)} was sent {', '.join(came)}")
        for name, tensor in own.items():
            found = came[name]
            if not isinstance(found, Tensor) or (found.shape, found.dtype) != (tensor.shape, tensor.dtype):
                raise RunError(f"{name}, {tensor.dtype} of shape {tuple(tensor.shape)}, was sent as something else")
    if not set(state["optimizer"]) <= set(segment.parameters):
        raise RunError("a stage was sent optimizer state of parameters that are not its own")


@torch.no_grad()
def _put(segment: Segment, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    for name, parameter in segment.parameters.items():
        parameter.copy_(state["parameters"][name])
        if name in state["optimizer"]:
            known = optimizer.state[parameter]
            known.clear()
            known.update(state["optimizer"][name])
        elif parameter in optimizer.state:
            del optimizer.state[parameter]
    for name, buffer in segment.buffers.items():
        buffer.copy_(state["buffers"][name])
    for module, training in zip(segment.module.modules(), state["training"], strict=True):
        module.training = training
    for parameter, flag in zip(segment.parameters.values(), state["requires_grad"], strict=True):
        parameter.requires_grad_(flag)
