"""State dictionaries as JSON values beside a flat table of tensors; no pickle.

What JSON lacks is written as a mapping with one key that begins with ``$``: tensors, tuples, counters, mappings whose
keys are no strings, and numbers that are not finite. Floats keep their bits (JSON writes the shortest text that reads
back the same).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from convoy.errors import CheckpointError


def pack(value: Any, tensors: dict[str, torch.Tensor], path: str) -> Any:
    """``value`` as JSON-ready values; its tensors go into ``tensors``, named after where they stand under ``path``.

    Raises CheckpointError for what could only be pickled.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, torch.Tensor):
        while path in tensors:  # keys that hold dots may give the same path twice
            path += "'"
        tensors[path] = contiguous_copy(value)
        strides = dense_strides(value)
        return {"$tensor": path} if strides is None else {"$tensor": path, "strides": list(strides)}
    if type(value) is int:
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, Counter):
        return {"$counter": [[pack(k, tensors, path), count] for k, count in value.items()]}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: pack(item, tensors, f"{path}.{key}") for key, item in value.items()}
        pairs = [[pack(key, tensors, path), pack(item, tensors, f"{path}.{key}")] for key, item in value.items()]
        return {"$pairs": pairs}
    if type(value) is list:
        return [pack(item, tensors, f"{path}.{i}") for i, item in enumerate(value)]
    if type(value) is tuple:
        return {"$tuple": [pack(item, tensors, f"{path}.{i}") for i, item in enumerate(value)]}
    if hasattr(value, "item") and getattr(value, "shape", None) == ():  # a numpy number
        return pack(value.item(), tensors, path)
    raise CheckpointError(
        f"{path} is a {type(value).__name__}, which cannot be stored without pickle",
        hint="keep only numbers, strings, tensors, lists and dictionaries in the state",
    )


def unpack(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """What ``pack`` was given. Raises CheckpointError when a tensor is missing."""
    if isinstance(value, list):
        return [unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        name = value["$tensor"]
        if name not in tensors:
            raise CheckpointError(f"the checkpoint lacks the tensor {name}", hint="use an earlier checkpoint")
        return with_strides(tensors[name], value.get("strides"))
    if "$float" in value:
        return float(value["$float"])
    if "$counter" in value:
        return Counter({unpack(key, tensors): count for key, count in value["$counter"]})
    if "$pairs" in value:
        return {unpack(key, tensors): unpack(item, tensors) for key, item in value["$pairs"]}
    if "$tuple" in value:
        return tuple(unpack(item, tensors) for item in value["$tuple"])
    return {key: unpack(item, tensors) for key, item in value.items()}


def contiguous_copy(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the CPU, row by row, that shares memory with nothing."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def dense_strides(tensor: torch.Tensor) -> tuple[int, ...] | None:
    """Strides of a tensor that fills its memory in another order than row by row (channels last), else None.

    The order decides which kernels run and so the last bits; hence it is stored. A view with gaps or overlaps comes
    back contiguous.
    """
    if tensor.layout is not torch.strided or tensor.numel() == 0 or tensor.stride() == row_by_row(tensor.shape):
        return None
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1):
        if stride != expected:
            return None
        expected *= size
    return tuple(tensor.stride())


def row_by_row(shape: torch.Size) -> tuple[int, ...]:
    # ``is_contiguous`` overlooks dimensions of size 1, by whose strides PyTorch still chooses its kernels.
    return tuple(torch.empty(shape, device="meta").stride())


def with_strides(tensor: torch.Tensor, strides: list[int] | None) -> torch.Tensor:
    """``tensor`` with its values laid out by ``strides``."""
    if strides is None:
        return tensor
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
