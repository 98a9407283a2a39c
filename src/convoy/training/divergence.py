"""When a run counts as diverged: one check for all strategies."""

from __future__ import annotations

import math
from statistics import median_low

from convoy.errors import LOWER_RATE, Diverged
from convoy.training.history import EpochRecord

FIRST = 5
"""The level at the beginning is the median of so many losses."""
TIMES, FLOOR = 1e3, 1e4
"""A loss is absurd above the larger of so many times that level and this."""
IN_A_ROW = 10
"""So many mini-batches have to be absurd: a run that overshoots and comes back is not stopped."""


class LossCheck:
    """Looks at losses as they come. ``first``: the first losses of the run, which it adds to; part of a checkpoint."""

    def __init__(self, first: list[float]) -> None:
        self._first = first
        self._absurd = self._seen = 0  # mini-batches, and losses, in a row

    @property
    def limit(self) -> float:
        """Above it a loss is absurd."""
        return max(TIMES * abs(median_low(self._first)), FLOOR) if self._first else math.inf

    def batch(self, loss: float, batch: int, epoch: int, lr: float, *, steps: int | None = None) -> None:
        """Take the loss of mini-batch ``batch``, or the mean of a turn of ``steps`` mini-batches; ``epoch`` is counted
        from 1. Raises Diverged."""
        where = f"of batch {batch} (epoch {epoch}) is {loss:.4g} at learning rate {lr:g}"
        if not math.isfinite(loss):
            # A turn trains before it has a loss.
            raise Diverged(f"the loss {where}", batch=batch if steps is None else None)
        if len(self._first) < FIRST:
            self._first.append(loss)
        absurd = loss > self.limit
        self._absurd, self._seen = (self._absurd + (steps or 1), self._seen + 1) if absurd else (0, 0)
        if self._absurd >= IN_A_ROW and self._seen > 1:  # a turn's mean may be one mini-batch's doing
            raise Diverged(
                f"the loss {where}, was above {self.limit:.3g} for {self._absurd} mini-batches in a row, "
                f"and about {median_low(self._first):.3g} at the beginning",
                batch=batch,
            )

    def validation(self, record: EpochRecord) -> None:
        """Look at an epoch with validation. Raises Diverged where its loss is not finite."""
        loss = record.validation_loss
        if loss is None or math.isfinite(loss):
            return
        sound = record.train_loss <= self.limit
        raise Diverged(
            f"the validation loss after epoch {record.epoch} is {loss} at learning rate {record.lr:g}, "
            f"and the training loss {record.train_loss:.4g}",
            hint=LOWER_RATE + ("; or look for NaN and huge values in the validation data" if sound else ""),
        )
