"""Backward with the weights as they are *now*, without a copy of them.

Autograd saves a weight for the backward pass and refuses to go on when an update changed it in between. The
publication wants just that: backward reads the current version. So saved tensors are packed by what they are:

- a parameter, or a view of one: by reference, read when the backward pass asks for it;
- a cast of a parameter made by autocast: as the recipe (parameter, type, geometry), cast again in the backward pass.
  Saved as it is, it would silently stash the old weights;
- anything else: as it is, with the check autograd would have made, that nobody has written to it since.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

# What autocast and linear layers put between a parameter and what is saved of it.
_CASTS = frozenset({"ToCopyBackward0", "TBackward0", "TransposeBackward0", "PermuteBackward0", "ViewBackward0"})


class _Cast(NamedTuple):
    parameter: Tensor
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


class _Versioned(NamedTuple):
    tensor: Tensor
    version: int


class CurrentWeights:
    """Context for a stage's forward pass. ``parameters``: the stage's own."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._by_storage = {p.untyped_storage().data_ptr(): p for p in parameters}

    def hooks(self) -> torch.autograd.graph.saved_tensors_hooks:
        return torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def _pack(self, tensor: Tensor) -> Any:
        if tensor.untyped_storage().data_ptr() in self._by_storage:
            return tensor.detach()  # the same storage: always the current values
        if tensor.grad_fn is not None:
            cast = self._cast_of(tensor)
            if cast is not None:
                return cast
            tensor = tensor.detach()  # no cycle through its own graph
        return _Versioned(tensor, tensor._version)

    def _unpack(self, packed: Any) -> Tensor:
        if isinstance(packed, _Versioned):
            if packed.tensor._version != packed.version:
                raise RuntimeError(
                    "one of the tensors needed for the backward pass was changed in place after it was saved"
                )
            return packed.tensor
        if isinstance(packed, _Cast):
            cast = packed.parameter.detach().to(packed.dtype)
            return cast.as_strided(packed.size, packed.stride, packed.offset)
        assert isinstance(packed, Tensor)
        return packed

    def _cast_of(self, tensor: Tensor) -> _Cast | None:
        node = tensor.grad_fn
        while node is not None and node.name() in _CASTS:
            node = node.next_functions[0][0]
        if node is None or not node.name().endswith("AccumulateGrad"):
            return None
        leaf = getattr(node, "variable", None)
        if leaf is None or leaf.untyped_storage().data_ptr() not in self._by_storage:
            return None
        return _Cast(leaf, tensor.dtype, tuple(tensor.size()), tensor.stride(), int(tensor.storage_offset()))
