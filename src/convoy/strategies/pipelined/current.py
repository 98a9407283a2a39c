"""Backward with the weights as they are *now*, without a copy of them.

Autograd saves a weight for the backward pass and refuses to go on when an update changed it in between. The
publication wants just that: backward reads the current version. So saved tensors are packed by what they are:

- a parameter, or a view of one: by reference, read when the backward pass asks for it;
- a cast of a parameter made by autocast: as the recipe (parameter, type, geometry), cast again in the backward pass.
  Saved as it is, it would silently stash the old weights;
- a parameter from which a weight is computed in the forward pass: a copy, for what was computed is the old one too;
- anything else: as it is, with the check autograd would have made, that nobody has written to it since.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

# What autocast, linear layers and predictions put between a parameter and what is saved of it.
_CASTS = frozenset(
    {"ToCopyBackward0", "TBackward0", "TransposeBackward0", "PermuteBackward0", "ViewBackward0", "_AheadBackward"}
)


class _Weight(NamedTuple):
    """A parameter, or a cast of it, with the geometry in which it was saved."""

    parameter: Tensor
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


class _Held(NamedTuple):
    tensor: Tensor
    version: int


def hold(tensor: Tensor) -> _Held:
    """``tensor`` without a cycle through its own graph, and how often it was written so far."""
    return _Held(tensor.detach() if tensor.grad_fn is not None else tensor, tensor._version)


def release(held: _Held) -> Tensor:
    """The tensor again. Raises RuntimeError, as autograd would, if somebody wrote to it in between."""
    if held.tensor._version != held.version:
        raise RuntimeError("a tensor needed for the backward pass was changed in place after it was saved")
    return held.tensor


class CurrentWeights:
    """Context for a stage's forward pass. ``parameters``: the stage's own.

    ``aliases``: buffers that stand for a parameter in the forward (predictions); ``sources``: what the backward reads
    in place of a parameter, by its id (estimates); ``derived``: parameters that are saved as copies.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        aliases: Iterable[tuple[Tensor, Tensor]] = (),
        sources: Mapping[int, Tensor] | None = None,
        derived: Iterable[Tensor] = (),
    ) -> None:
        self._copied = {p.untyped_storage().data_ptr() for p in derived}
        current = (p for p in parameters if p.untyped_storage().data_ptr() not in self._copied)
        self._own = {id(p): p for p in current}  # keeps them, so that no id is given again
        parameters = self._own.values()
        self._by_storage = {p.untyped_storage().data_ptr(): p for p in parameters}
        self._aliases = {buffer.untyped_storage().data_ptr(): p for buffer, p in aliases}
        self._sources = sources or {}

    def hooks(self) -> torch.autograd.graph.saved_tensors_hooks:
        return torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def _pack(self, tensor: Tensor) -> Any:
        # This runs for every tensor that autograd saves, holding the GIL: the two usual cases come first.
        if not self._sources and id(tensor) in self._own:
            return tensor
        node = tensor.grad_fn
        if node is not None and not tensor._is_view() and node.name() not in _CASTS:
            return _Held(tensor.detach(), tensor._version)
        return self._pack_carefully(tensor)

    def _pack_carefully(self, tensor: Tensor) -> Any:
        storage = tensor.untyped_storage().data_ptr()
        if storage in self._copied:
            return hold(tensor.detach().clone())
        if storage in self._by_storage and not self._sources:
            return tensor.detach()  # the same storage: always the current values
        weight = self._by_storage.get(storage)
        if weight is None:
            weight = self._aliases.get(storage)
        if weight is None and tensor.grad_fn is not None:
            weight = self._cast_of(tensor)
        if weight is None:
            return hold(tensor)
        return _Weight(weight, tensor.dtype, tuple(tensor.size()), tensor.stride(), int(tensor.storage_offset()))

    def _unpack(self, packed: Any) -> Tensor:
        if type(packed) is _Held:
            return release(packed)
        if isinstance(packed, _Weight):
            source = self._sources.get(id(packed.parameter), packed.parameter).detach().to(packed.dtype)
            return source.as_strided(packed.size, packed.stride, packed.offset)
        assert isinstance(packed, Tensor)
        return packed

    def _cast_of(self, tensor: Tensor) -> Tensor | None:
        """The parameter of which ``tensor`` is a cast; None if it is something else."""
        node = tensor.grad_fn
        while node is not None and node.name() in _CASTS:
            node = node.next_functions[0][0]
        if node is None or not node.name().endswith("AccumulateGrad"):
            return None
        leaf: Tensor | None = getattr(node, "variable", None)
        return leaf if leaf is not None and leaf.untyped_storage().data_ptr() in self._by_storage else None
