"""What every strategy of a comparison trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from convoy.strategies.base import Loss
from convoy.training.setup import Scheduler


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The objects of one run, as a ``Trainer`` takes them, and its data."""

    model: nn.Module
    loss: Loss
    optimizer: torch.optim.Optimizer
    train: Iterable[Any]
    validation: Iterable[Any] | None = None
    scheduler: Scheduler | None = None
    scheduler_interval: str = "epoch"


MakeWorkload: TypeAlias = Callable[[int], Workload]
"""Builds everything anew from a seed, so that each strategy begins with the same weights and sees the same data."""
