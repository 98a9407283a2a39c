"""What a run reached, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from convoy.drawing.chart import Chart, Line, chart_svg
from convoy.drawing.table import html_table

HIGHER_IS_BETTER = {"train_accuracy": True, "validation_accuracy": True, "train_loss": False, "validation_loss": False}
"""The values of an epoch that can be watched, and which way is better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """One epoch, counted from 1. Losses are means per sample, accuracies shares of 1 (None where they make no sense),
    ``seconds`` those of training alone, ``lr`` that of the first group at the last batch, ``busy`` lane → share.
    ``began``: whether a ``fit`` began in it, so that capture, cold caches and measuring of cuts are in its time."""

    epoch: int
    train_loss: float
    train_accuracy: float | None = None
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    seconds: float = 0.0
    samples: int = 0
    samples_per_second: float = 0.0
    lr: float = 0.0
    busy: Mapping[str, float] = field(default_factory=dict)
    began: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EpochRecord:
        known = {f.name for f in fields(cls)}
        values = {"began": values["epoch"] == 1, **values}  # older files do not say
        return cls(**{key: value for key, value in values.items() if key in known})


@dataclass
class History:
    """The epochs of a run. ``best_epoch`` (counted from 1) is the one that ``keep_best`` chose, ``stopped_early``
    why training ended before its time. ``plan`` is what the strategy decided and predicted, ``measured`` the same with
    what was measured (None where the strategy predicts nothing); both of the last ``fit``, and in the run folder."""

    epochs: list[EpochRecord] = field(default_factory=list)
    best_epoch: int | None = None
    stopped_early: str | None = None
    plan: Any = field(default=None, compare=False, repr=False)
    measured: Any = field(default=None, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.epochs)

    def __getitem__(self, index: int) -> EpochRecord:
        return self.epochs[index]

    @property
    def last(self) -> EpochRecord:
        return self.epochs[-1]

    def to_dict(self) -> dict[str, Any]:
        return {
            "epochs": [record.to_dict() for record in self.epochs],
            "best_epoch": self.best_epoch,
            "stopped_early": self.stopped_early,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> History:
        epochs = [EpochRecord.from_dict(record) for record in values["epochs"]]
        return cls(epochs, values.get("best_epoch"), values.get("stopped_early"))

    def table(self) -> str:
        """The epochs as aligned text, columns without values left out."""
        rows = self._cells()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True)) for row in rows)

    def _cells(self) -> list[list[str]]:
        """A head and a row for every epoch, columns without values left out."""
        columns = [
            ("epoch", [str(r.epoch) + ("*" if r.epoch == self.best_epoch else "") for r in self.epochs]),
            ("loss", [f"{r.train_loss:.4f}" for r in self.epochs]),
            ("accuracy", [_percent(r.train_accuracy) for r in self.epochs]),
            ("val. loss", ["" if r.validation_loss is None else f"{r.validation_loss:.4f}" for r in self.epochs]),
            ("val. accuracy", [_percent(r.validation_accuracy) for r in self.epochs]),
            ("lr", [f"{r.lr:.3g}" for r in self.epochs]),
            ("samples/s", [f"{r.samples_per_second:.0f}" for r in self.epochs]),
            ("seconds", [f"{r.seconds:.1f}" for r in self.epochs]),
        ]
        shown = [(head, cells) for head, cells in columns if any(cells)]
        return [[head for head, _ in shown], *map(list, zip(*(cells for _, cells in shown), strict=True))]

    def __str__(self) -> str:
        return self.table() if self.epochs else "no epoch yet"

    def _repr_html_(self) -> str:
        """The table and the curves of accuracy (of loss, where there is none), for notebooks."""
        if not self.epochs:
            return "<p>no epoch yet</p>"
        head, *rows = self._cells()
        return f'<div>{html_table(head, rows)}<div style="max-width:560px">{chart_svg(self.chart())}</div></div>'

    def chart(self) -> Chart:
        """Accuracy over the epochs; loss where no accuracy is known."""
        known = any(r.train_accuracy is not None or r.validation_accuracy is not None for r in self.epochs)
        what = "accuracy" if known else "loss"
        x = [float(record.epoch) for record in self.epochs]
        lines = (
            Line(
                "validation", x, [getattr(r, f"validation_{what}") for r in self.epochs], family=0, points=len(x) < 40
            ),
            Line("training", x, [getattr(r, f"train_{what}") for r in self.epochs], family=1),
        )
        marks = () if self.best_epoch is None else ((float(self.best_epoch), "best epoch"),)
        return Chart(what.capitalize(), "epoch", what, lines, percent=known, zero=not known, whole=True, marks=marks)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"


@dataclass(slots=True)
class EpochSums:
    """What the batches of one epoch have added up to so far; part of a checkpoint, so plain numbers only."""

    epoch: int  # counted from 0
    total: int | None = None  # batches of the epoch, once its loader ran out
    batches: int = 0
    samples: int = 0
    loss_sum: float = 0.0
    correct: int | None = 0
    seconds: float = 0.0
    lr: float = 0.0
    last_batch: int = -1  # its number in the run
    began: bool = False  # a fit began in it

    def add(self, batch: int, loss: float, correct: int | None, samples: int, lr: float) -> None:
        self.batches += 1
        self.samples += samples
        self.loss_sum += loss * samples
        self.correct = None if correct is None or self.correct is None else self.correct + correct
        self.lr = lr
        self.last_batch = batch

    def record(self, busy: Mapping[str, float], validation: Any = None) -> EpochRecord:
        """The epoch's record; ``validation`` is an ``Evaluation`` or None."""
        return EpochRecord(
            epoch=self.epoch + 1,
            train_loss=self.loss_sum / self.samples,
            train_accuracy=None if self.correct is None else self.correct / self.samples,
            validation_loss=None if validation is None else validation.loss,
            validation_accuracy=None if validation is None else validation.accuracy,
            seconds=self.seconds,
            samples=self.samples,
            samples_per_second=self.samples / self.seconds if self.seconds > 0 else 0.0,
            lr=self.lr,
            busy=dict(busy),
            began=self.began,
        )
