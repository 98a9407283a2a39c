"""The autocast context that a run's precision asks for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from convoy.strategies.base import Settings


def autocast_of(settings: Settings) -> Callable[[], AbstractContextManager[Any]]:
    """Makes the context of one forward pass; without autocast's weight cache, which threads would share."""
    if settings.precision == "float32":
        return nullcontext
    device = torch.device(settings.device).type
    return lambda: torch.autocast(device, torch.bfloat16, cache_enabled=False)
