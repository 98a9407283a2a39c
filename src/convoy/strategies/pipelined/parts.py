"""A mini-batch in micro-batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convoy.errors import DataError
from convoy.strategies.batch import map_tensors


def split_parts(x: Any, y: Any, samples: int, parts: int) -> list[tuple[Any, Any, int]]:
    """``parts`` micro-batches by ``torch.tensor_split`` along dimension 0, with the samples of each."""
    if parts == 1:
        return [(x, y, samples)]
    ends = torch.arange(samples).tensor_split(parts)
    bounds = [(int(piece[0]), int(piece[-1]) + 1) for piece in ends]

    def cut(value: Any, start: int, stop: int) -> Any:
        def one(tensor: Tensor) -> Tensor:
            if not tensor.dim() or tensor.shape[0] != samples:
                raise DataError(
                    f"a tensor of shape {tuple(tensor.shape)} cannot be cut into micro-batches of {samples} samples",
                    hint="give every tensor of the batch the batch size as first dimension, or set accumulate=1",
                )
            return tensor[start:stop]

        return map_tensors(one, value)

    return [(cut(x, a, b), cut(y, a, b), b - a) for a, b in bounds]
