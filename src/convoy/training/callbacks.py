"""Watching a value from epoch to epoch: early stopping and keep-best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from convoy.errors import OptionError
from convoy.training.history import HIGHER_IS_BETTER, EpochRecord


@dataclass(frozen=True, slots=True)
class EarlyStopping:
    """Stop when ``metric`` has not improved by more than ``min_delta`` for ``patience`` epochs.

    ``metric``: validation_loss, validation_accuracy, train_loss or train_accuracy.
    """

    patience: int = 5
    min_delta: float = 0.0
    metric: str = "validation_loss"

    def __post_init__(self) -> None:
        _check_metric(self.metric)
        check_count("patience", self.patience)
        if not (math.isfinite(self.min_delta) and self.min_delta >= 0):
            raise OptionError(f"min_delta must be a number of at least 0, not {self.min_delta!r}")


@dataclass(frozen=True, slots=True)
class KeepBest:
    """Keep the weights of the epoch where ``metric`` was best, and load them when training ends.

    ``metric`` None: validation accuracy, or validation loss, or training loss, the first that there is.
    """

    metric: str | None = None

    def __post_init__(self) -> None:
        if self.metric is not None:
            _check_metric(self.metric)


def check_count(name: str, value: Any) -> None:
    """Raise OptionError unless ``value`` is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OptionError(f"{name} must be a whole number of at least 1, not {value!r}", hint=f"for example {name}=10")


def _check_metric(metric: str) -> None:
    if metric not in HIGHER_IS_BETTER:
        raise OptionError(f"metric {metric!r} is unknown", hint=f"one of: {', '.join(HIGHER_IS_BETTER)}")


class Watch:
    """The best value of a metric so far, and the epochs since."""

    def __init__(self, metric: str | None, min_delta: float = 0.0) -> None:
        self.metric = metric
        self._min_delta = min_delta
        self.best: float | None = None
        self.epoch: int | None = None
        self.waited = 0

    def update(self, record: EpochRecord) -> bool:
        """Take in an epoch; whether it is the best so far. Raises OptionError when it lacks the metric."""
        metric = self.metric or next(
            name
            for name in ("validation_accuracy", "validation_loss", "train_loss")
            if getattr(record, name) is not None
        )
        value = getattr(record, metric)
        if value is None:
            missing = "no validation data was given" if metric == "validation_loss" else "it is not known here"
            if metric == "validation_accuracy":
                missing = "no validation data was given, or the output is no table of class scores"
            raise OptionError(f"{metric} is watched, but {missing}", hint="pass validation data, or watch train_loss")
        self.metric = metric
        gain = 0.0 if self.best is None else (value - self.best) * (1 if HIGHER_IS_BETTER[metric] else -1)
        if self.best is None or gain > self._min_delta:
            self.best, self.epoch, self.waited = value, record.epoch, 0
            return True
        self.waited += 1
        return False

    def state(self) -> dict[str, Any]:
        return {"metric": self.metric, "best": self.best, "epoch": self.epoch, "waited": self.waited}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.metric, self.best, self.epoch = state["metric"], state["best"], state["epoch"]
        self.waited = state["waited"]
