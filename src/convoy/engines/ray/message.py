"""What travels between processes: a header of plain values, and all tensors in one flat array of bytes.

Nothing is pickled here. The header says of each tensor its type, shape, strides and place in the array; both are
checked against each other before a tensor is made. Strides travel because they decide which kernels run, and so the
last bits.

What plain values lack is written as a mapping with one key that begins with ``$``: a tensor (its number), a tuple, a
mapping whose keys are not all strings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convoy.errors import RESUME, DataError, RunError

_ALIGNMENT = 64  # bytes; a tensor begins where PyTorch's own would
_LARGEST = 2**31  # elements between the first and the last of a tensor with gaps

DTYPES = {
    str(t).removeprefix("torch."): t
    for t in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}


@dataclass(frozen=True, slots=True)
class Message:
    """``header``: ``{"value": ..., "tensors": [[dtype, shape, strides, offset], ...]}``; ``array``: bytes [n]."""

    header: dict[str, Any]
    array: np.ndarray[Any, np.dtype[np.uint8]]


def pack(value: Any, what: str = "a value") -> Message:
    """``value``, nested in mappings, lists and tuples, as a message. A single dense tensor is not copied.

    Raises DataError for what is neither plain nor a tensor; ``what`` names it.
    """
    tensors: list[Tensor] = []
    body = _take_apart(value, tensors, what)
    table: list[list[Any]] = []
    pieces: list[tuple[int, np.ndarray[Any, Any]]] = []
    end = 0
    for tensor in tensors:
        if tensor.layout is not torch.strided or str(tensor.dtype).removeprefix("torch.") not in DTYPES:
            raise DataError(
                f"{what} holds a tensor of type {tensor.dtype}, {tensor.layout}, which cannot be sent",
                hint="send dense tensors of numbers",
            )
        data = _bytes_of(tensor)
        start = -(-end // _ALIGNMENT) * _ALIGNMENT
        dtype = str(tensor.dtype).removeprefix("torch.")
        table.append([dtype, list(tensor.shape), list(tensor.stride()), start])
        pieces.append((start, data))
        end = start + data.nbytes
    if len(pieces) == 1:
        array = pieces[0][1]
    else:
        array = np.zeros(end, dtype=np.uint8)
        for start, data in pieces:
            array[start : start + data.nbytes] = data
    return Message({"value": body, "tensors": table}, array)


def unpack(header: Any, array: Any, what: str = "a message") -> Any:
    """What ``pack`` was given; tensors in memory of their own. Raises RunError where header and array disagree."""
    if not isinstance(header, dict) or not isinstance(header.get("tensors"), list) or "value" not in header:
        raise _damaged(what, "its header is none")
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim != 1:
        raise _damaged(what, "its data are no flat array of bytes")
    tensors = []
    end = 0
    for entry in header["tensors"]:
        tensor, end = _tensor(entry, array, end, what)
        tensors.append(tensor)
    if end != array.nbytes:
        raise _damaged(what, f"{array.nbytes} bytes came and {end} were announced")
    return _put_together(header["value"], tensors, what)


def finite(value: Any) -> bool:
    """Whether all floating-point tensors nested in ``value`` hold finite numbers only. One pass, no copy."""
    if isinstance(value, Tensor):
        if value.is_complex():
            value = torch.view_as_real(value)
        if not value.is_floating_point() or not value.numel():
            return True
        low, high = torch.aminmax(value.detach())  # not-a-number comes out of both
        return bool(torch.isfinite(low) and torch.isfinite(high))
    if isinstance(value, Mapping):
        return all(map(finite, value.values()))
    return all(map(finite, value)) if isinstance(value, (list, tuple)) else True


# --- values --------------------------------------------------------------------------------------------------


def _take_apart(value: Any, tensors: list[Tensor], what: str) -> Any:
    if value is None or isinstance(value, (bool, str)) or type(value) in (int, float):
        return value
    if isinstance(value, Tensor):
        tensors.append(value.detach().resolve_conj().resolve_neg())
        return {"$tensor": len(tensors) - 1}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: _take_apart(item, tensors, what) for key, item in value.items()}
        return {"$pairs": [[_take_apart(k, tensors, what), _take_apart(v, tensors, what)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [_take_apart(item, tensors, what) for item in value]
        return items if isinstance(value, list) else {"$tuple": items}
    raise DataError(
        f"{what} holds a {type(value).__name__}, which does not travel between processes",
        hint="use tensors, numbers, strings, lists, tuples and dictionaries",
    )


def _put_together(body: Any, tensors: list[Tensor], what: str) -> Any:
    if isinstance(body, list):
        return [_put_together(item, tensors, what) for item in body]
    if body is None or isinstance(body, (bool, str, int, float)):
        return body
    if not isinstance(body, dict):
        raise _damaged(what, f"its header holds a {type(body).__name__}")
    if "$tensor" in body:
        number = body["$tensor"]
        if type(number) is not int or not 0 <= number < len(tensors):
            raise _damaged(what, f"tensor {number!r} is missing")
        return tensors[number]
    if "$tuple" in body:
        return tuple(_put_together(item, tensors, what) for item in body["$tuple"])
    if "$pairs" in body:
        return {_put_together(k, tensors, what): _put_together(v, tensors, what) for k, v in body["$pairs"]}
    return {key: _put_together(item, tensors, what) for key, item in body.items()}


# --- tensors -------------------------------------------------------------------------------------------------


def _once(shape: list[int] | torch.Size, strides: Any) -> list[int]:
    """The shape without repetitions: size 1 where the stride is 0."""
    return [1 if stride == 0 and size else size for size, stride in zip(shape, strides, strict=True)]


def _dense(shape: list[int], strides: Any) -> bool:
    """Whether elements fill their memory without gaps, in whatever order."""
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(strides, shape, strict=True) if n != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def _bytes_of(tensor: Tensor) -> np.ndarray[Any, Any]:
    """The elements of a CPU tensor as bytes [n]: in memory order where it is dense (no copy), else row by row."""
    once = _once(tensor.shape, tensor.stride())
    base = tensor.as_strided(once, tensor.stride())
    count = prod(once)
    flat = base.as_strided((count,), (1,)) if _dense(once, tensor.stride()) else base.reshape(-1)
    data: np.ndarray[Any, Any] = flat.contiguous().view(torch.uint8).numpy()
    return data


def _tensor(entry: Any, array: np.ndarray[Any, Any], end: int, what: str) -> tuple[Tensor, int]:
    """The tensor of a table entry, and where its bytes end; ``end`` is where those before it do."""
    try:
        name, shape, strides, start = entry
        sound = all(type(n) is int and n >= 0 for n in (*shape, *strides, start)) and len(shape) == len(strides)
    except (TypeError, ValueError):
        sound = False
    if not sound or name not in DTYPES:
        raise _damaged(what, f"{entry!r} describes no tensor")
    dtype = DTYPES[name]
    once = _once(shape, strides)
    count = prod(once)
    size = count * dtype.itemsize
    if start != -(-end // _ALIGNMENT) * _ALIGNMENT or start + size > array.nbytes:
        raise _damaged(what, f"{entry!r} does not fit into its {array.nbytes} bytes")
    extent = 1 + sum((n - 1) * s for n, s in zip(once, strides, strict=True)) if count else 0
    dense = _dense(once, strides)
    if count and (extent != count if dense else extent < count or extent > _LARGEST):
        raise _damaged(what, f"{entry!r} overlaps itself")
    flat = torch.empty(count, dtype=dtype)
    np.copyto(flat.view(torch.uint8).numpy(), array[start : start + size])
    if dense:
        return flat.as_strided(shape, strides), start + size
    spread = torch.empty(extent, dtype=dtype)
    spread.as_strided(once, strides).copy_(flat.view(once))
    return spread.as_strided(shape, strides), start + size


def _damaged(what: str, why: str) -> RunError:
    return RunError(f"{what} was damaged on its way: {why}", hint=RESUME)
