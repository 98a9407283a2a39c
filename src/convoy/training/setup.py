"""What a trainer was given, and where its run stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from convoy.errors import OptionError
from convoy.strategies.base import Loss, Settings, Strategy
from convoy.training.callbacks import EarlyStopping, KeepBest, Watch
from convoy.training.history import EpochSums, History

Scheduler = torch.optim.lr_scheduler.LRScheduler


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The user's own objects and choices, checked."""

    model: nn.Module
    loss: Loss
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler | None
    scheduler_interval: str
    strategy: Strategy
    settings: Settings
    save_every: str | int | None
    early_stopping: EarlyStopping | None
    keep_best: KeepBest | None

    def __post_init__(self) -> None:
        if self.scheduler_interval not in ("epoch", "batch"):
            raise OptionError(
                f"scheduler_interval {self.scheduler_interval!r} is unknown", hint="one of: 'epoch', 'batch'"
            )
        every = self.save_every
        wrong_number = isinstance(every, bool) or (isinstance(every, int) and every < 1)
        if wrong_number or not (every is None or every == "epoch" or isinstance(every, int)):
            raise OptionError(f"save_every must be None, 'epoch' or a number of batches of at least 1, not {every!r}")
        if self.watches_metric and self.scheduler_interval == "batch":
            raise OptionError(
                "ReduceLROnPlateau looks at a value per epoch, so it cannot step per batch",
                hint="leave scheduler_interval at 'epoch'",
            )

    @property
    def watches_metric(self) -> bool:
        """Whether the scheduler is one that is told a loss."""
        return isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)

    def learning_rate(self) -> float:
        """Of the first parameter group."""
        return float(self.optimizer.param_groups[0].get("lr", 0.0))


@dataclass(slots=True)
class TrainingState:
    """Where a run stands, as plain values and tensors. ``epoch`` and ``batch`` (within it) are those that come next;
    ``batches`` counts those of the run. ``sums`` are of epochs whose record is not written yet."""

    epoch: int = 0
    batch: int = 0
    batches: int = 0
    sums: list[EpochSums] = field(default_factory=list)
    history: History = field(default_factory=History)
    step: Mapping[str, Any] | None = None
    epoch_start: Mapping[str, Any] | None = None
    now: Mapping[str, Any] | None = None
    best_checkpoint: str | None = None
    first_losses: list[float] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "batch": self.batch,
            "batches": self.batches,
            "sums": [asdict(sums) for sums in self.sums],
            "history": self.history.to_dict(),
            "step": None if self.step is None else dict(self.step),
            "epoch_start": self.epoch_start,
            "now": self.now,
            "first_losses": list(self.first_losses),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingState:
        return cls(
            epoch=values["epoch"],
            batch=values["batch"],
            batches=values["batches"],
            sums=[EpochSums(**sums) for sums in values["sums"]],
            history=History.from_dict(values["history"]),
            step=values["step"],
            epoch_start=values["epoch_start"],
            now=values["now"],
            first_losses=list(values.get("first_losses", ())),  # older checkpoints have none
        )


@dataclass(slots=True)
class Watches:
    """Early stopping and keep-best in the middle of a run."""

    stopping: Watch | None
    best: Watch | None

    @classmethod
    def of(cls, setup: Setup) -> Watches:
        early, keep = setup.early_stopping, setup.keep_best
        return cls(
            None if early is None else Watch(early.metric, early.min_delta),
            None if keep is None else Watch(keep.metric),
        )
