"""What a batch may look like, and how the user's model is called with it.

A loader yields pairs ``(x, y)``. ``x`` is a tensor, a mapping (keyword arguments of the model) or a tuple or list
(positional arguments). A loader that yields mappings alone, as Hugging Face data sets do, gives ``x = y = batch``.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from convoy.errors import DataError


def split_batch(batch: Any) -> tuple[Any, Any]:
    """``(x, y)`` of what a loader yields. Raises DataError when it is neither a pair nor a mapping."""
    if isinstance(batch, Mapping):
        return batch, batch
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    described = f"a {type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, (tuple, list)) else "")
    raise DataError(
        f"the loader yields {described}, which is neither a pair (x, y) nor a mapping",
        hint="let the data set return (input, target), with several inputs as ((a, b), target)",
    )


def arguments(x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments for the model: those of a mapping, of a tuple or list, or ``x`` alone."""
    if isinstance(x, Mapping):
        return (), dict(x)
    if isinstance(x, (tuple, list)):
        return tuple(x), {}
    return (x,), {}


def call(model: Callable[..., Any], x: Any) -> Any:
    """``model(**x)`` for a mapping, ``model(*x)`` for a tuple or list, else ``model(x)``."""
    args, kwargs = arguments(x)
    return model(*args, **kwargs)


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in nested mappings, tuples, lists and dataclasses, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors(getattr(value, field.name))


def map_tensors(function: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """``value`` with ``function`` put over its tensors; containers keep their type, everything else is passed on."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {f.name: map_tensors(function, getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        return dataclasses.replace(value, **changed)
    if isinstance(value, Mapping):
        items = {key: map_tensors(function, item) for key, item in value.items()}
        if type(value) is dict:
            return items
        like: Any = copy.copy(value)
        for key, item in items.items():
            like[key] = item
        return like
    if isinstance(value, (tuple, list)):
        parts = [map_tensors(function, item) for item in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def detach(value: Any) -> Any:
    """``value`` without its history, so that keeping it keeps no graph."""
    return map_tensors(torch.Tensor.detach, value)


def batch_size(x: Any) -> int:
    """Samples in ``x``: the first dimension of its first tensor that has one. Raises DataError when none has."""
    for tensor in tensors(x):
        if tensor.dim():
            return int(tensor.shape[0])
    raise DataError(
        f"the input of type {type(x).__name__} holds no tensor with a batch dimension",
        hint="let the loader yield tensors of shape [batch, ...]",
    )


def to_device(x: Any, device: torch.device | str) -> Any:
    """``x`` with its tensors on ``device``; from pinned memory the copy does not block."""
    target = torch.device(device)
    if all(t.device == target for t in tensors(x)):
        return x
    return map_tensors(lambda t: t.to(target, non_blocking=True), x)


def channels_last(x: Any) -> Any:
    """``x`` with every floating-point image batch [N, C, H, W] stored channels last. Values stay.

    By ``to``, not ``contiguous``: that leaves the strides of images with one channel alone, and then PyTorch picks the
    slower kernels.
    """
    if isinstance(x, torch.Tensor):
        return _image_channels_last(x)
    return map_tensors(_image_channels_last, x)


def _image_channels_last(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dim() == 4 and tensor.is_floating_point():
        return tensor.to(memory_format=torch.channels_last)
    return tensor


def prepare_model(
    model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device | str, channels_last: bool
) -> None:
    """Bring the user's model to ``device`` and its 4-d weights to channels last; the parameters stay the same objects.

    Optimizer state that has the shape of its parameter follows it.
    """
    target = torch.device(device)
    if any(t.device != target for t in (*model.parameters(), *model.buffers())):
        model.to(target)
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape and value.dim():
                    state[key] = value.to(parameter.device)
    if channels_last:
        for weight in model.parameters():
            if weight.dim() == 4:
                weight.data = weight.data.to(memory_format=torch.channels_last)
