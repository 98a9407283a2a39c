"""Between a module and its flat arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convoy.errors import ModelError
from convoy.strategies.bilayered.layout import FLOATS, Entry, Flat, Layout


def layout_of(model: nn.Module) -> Layout:
    """Where each tensor of the model stands. Raises ModelError for a dtype that cannot be merged."""
    entries: list[Entry] = []
    sizes: dict[str, int] = {}
    for name, tensor, kind in _tensors(model):
        dtype = str(tensor.dtype).removeprefix("torch.")
        floating = tensor.is_floating_point()
        if (floating and dtype not in FLOATS) or tensor.is_complex():
            raise ModelError(
                f"{name} has the dtype {dtype}, and replicas are merged in float32 or float64",
                hint="keep the model in float32 and ask for precision bfloat16 instead",
            )
        key = f"{'weights' if kind == 'weight' else 'buffers'}/{dtype}"
        start = sizes.get(key, 0)
        sizes[key] = start + tensor.numel()
        entries.append(Entry(name, kind if floating else "counter", key, start, sizes[key], tuple(tensor.shape)))
    return Layout(tuple(entries), sizes)


def read(model: nn.Module, layout: Layout) -> Flat:
    """A copy of the model's tensors."""
    flat: Flat = {key: np.empty(size, key.partition("/")[2]) for key, size in layout.sizes.items()}
    named = {name: tensor for name, tensor, _ in _tensors(model)}
    for entry in layout.entries:
        value = named[entry.name].detach().cpu().numpy()
        flat[entry.key][entry.start : entry.stop] = value.reshape(-1)
    return flat


def write(model: nn.Module, layout: Layout, flat: Flat) -> None:
    """Put the arrays into the model's own tensors, whose memory format stays."""
    named = {name: tensor for name, tensor, _ in _tensors(model)}
    with torch.no_grad():
        for entry in layout.entries:
            tensor = named[entry.name].detach()
            value: Any = flat[entry.key][entry.start : entry.stop].reshape(entry.shape)
            if tensor.device.type == "cpu":
                np.copyto(tensor.numpy(), value)  # also from arrays that are read-only
            else:
                tensor.copy_(torch.from_numpy(value.copy()))


def _tensors(model: nn.Module) -> list[tuple[str, Tensor, str]]:
    """(name, tensor, kind), each tensor once."""
    found: list[tuple[str, Tensor, str]] = [(name, p, "weight") for name, p in model.named_parameters()]
    running: dict[str, str] = {}
    for path, module in model.named_modules():
        mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
        if isinstance(mean, Tensor) and isinstance(variance, Tensor):
            prefix = f"{path}." if path else ""
            running |= {f"{prefix}running_mean": "mean", f"{prefix}running_var": "variance"}
    return found + [(name, b, running.get(name, "buffer")) for name, b in model.named_buffers()]
