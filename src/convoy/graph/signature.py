"""What a captured model takes: how a batch becomes named input values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from convoy.errors import DataError
from convoy.graph.structure import Structure, flatten, is_tensor


@dataclass(frozen=True)
class Signature:
    """``names`` are the graph's input nodes, for the tensors in ``arguments`` = (args, kwargs) in order."""

    arguments: Structure
    names: tuple[str, ...]

    def bind(self, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
        """The input values by name. Raises ``DataError`` when the batch is built otherwise than the example was."""
        leaves, structure = flatten((tuple(args), dict(kwargs or {})), is_tensor)
        if not structure.same_form(self.arguments):
            raise DataError(
                "this batch is built otherwise than the first one: "
                f"{_outline(structure)}, not {_outline(self.arguments)}",
                hint="every batch has to have the same keys and the same values besides tensors",
            )
        return dict(zip(self.names, leaves, strict=True))


def _outline(structure: Structure) -> str:
    """``((tensor, tensor), {mask: tensor})``."""
    if structure.kind == "leaf":
        return "tensor"
    if structure.kind == "constant":
        return repr(structure.value)
    if structure.kind in ("tuple", "list", "named tuple"):
        return "(" + ", ".join(map(_outline, structure.children)) + ")"
    parts = zip(structure.keys, structure.children, strict=True)
    return "{" + ", ".join(f"{key}: {_outline(child)}" for key, child in parts) + "}"
