"""Where stages live when there are several CUDA devices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from convoy.graph.split import Segment


def spread(segments: Sequence[Segment], device: str) -> list[torch.device | None]:
    """Move each stage's parameters and buffers to its device, stages in turn over all visible devices.

    ``device`` "cuda" means all of them, "cuda:1" that one. Returns None for every stage where nothing has to move:
    on the CPU, and where one device serves all.
    """
    asked = torch.device(device)
    if asked.type != "cuda" or asked.index is not None or torch.cuda.device_count() < 2:
        return [None] * len(segments)
    places = [torch.device("cuda", i % torch.cuda.device_count()) for i in range(len(segments))]
    for segment, place in zip(segments, places, strict=True):
        for tensor in (*segment.parameters.values(), *segment.buffers.values()):
            tensor.data = tensor.data.to(place)
    return list(places)


def gather(model: nn.Module, device: str) -> None:
    """Bring the user's module back together on one device; nothing happens where it is."""
    if torch.device(device).type != "cuda" or len({t.device for t in model.parameters()}) < 2:
        return
    home = torch.device("cuda", current(device))
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.to(home)


def current(device: str) -> int:
    """The index of the CUDA device that ``device`` names."""
    index = torch.device(device).index
    return torch.cuda.current_device() if index is None else index
