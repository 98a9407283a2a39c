"""Which tensors autograd keeps for the backward pass, and for which node."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from convoy.graph.profile import SavedTable

_GEOMETRY = frozenset(("ToCopyBackward0", "TBackward0", "TransposeBackward0", "PermuteBackward0", "ViewBackward0"))
"""What autocast and linear layers put between a weight and what is saved of it."""


class SavedRecorder:
    """Writes down what is saved while node number ``position`` runs (set it before each node).

    Storages of ``owned`` (weights, buffers) and casts of them do not count: the former are there anyway, the latter
    are made anew in the backward pass.
    """

    def __init__(self, nodes: int, owned: Iterable[Tensor]) -> None:
        self.position = 0
        self._owned = {t.untyped_storage().data_ptr() for t in owned}
        self._entries: list[dict[int, int]] = [{} for _ in range(nodes)]
        # Held so that no address is used twice while we look.
        self._storages: dict[int, tuple[int, torch.UntypedStorage]] = {}

    def hooks(self) -> saved_tensors_hooks:
        """Context for the forward pass."""
        return saved_tensors_hooks(self._pack, _unpack)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if storage.nbytes() and address not in self._owned and not self._is_cast(tensor):
            number, _ = self._storages.setdefault(address, (len(self._storages), storage))
            self._entries[self.position][number] = storage.nbytes()
        return tensor.detach()  # no cycle through its own graph

    def _is_cast(self, tensor: Tensor) -> bool:
        node: Any = tensor.grad_fn
        if node is None:
            return False
        while node is not None and node.name() in _GEOMETRY:
            node = node.next_functions[0][0]
        leaf = getattr(node, "variable", None)
        return leaf is not None and leaf.untyped_storage().data_ptr() in self._owned

    def table(self) -> SavedTable:
        """What was seen; lets go of the tensors."""
        self._storages.clear()
        return tuple(tuple(entries.items()) for entries in self._entries)


def _unpack(tensor: Tensor) -> Tensor:
    return tensor
