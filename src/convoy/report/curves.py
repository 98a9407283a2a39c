"""The curves of a run: pure functions from what was read to charts."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

from convoy.drawing.chart import Chart, Line
from convoy.report.files import RunFiles, number

MOST_POINTS = 600  # of a curve; more are averaged in groups
FEWEST_STEPS = 8  # of a piece of an epoch: results of a pipeline come in bursts, and a drain brings the last at once
_KNOWN_STEP = {"epoch", "index", "loss", "correct", "samples", "lr", "in_flight", "lanes", "batch", "seconds"}
_KNOWN_DECISION = {"name", "batch", "seconds", "samples", "epoch"}
_KNOWN_EPOCH = {
    "epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "seconds", "samples",
    "samples_per_second", "lr", "busy", "batch", "memory_bytes", "began",
}  # fmt: skip

Rows = Sequence[Mapping[str, Any]]


def column(rows: Rows, key: str) -> list[float | None]:
    return [number(row.get(key)) for row in rows]


def training_seconds(epochs: Rows) -> list[float]:
    """Seconds of training up to the end of each epoch; validation and saving are not counted."""
    return list(accumulate(value or 0.0 for value in column(epochs, "seconds")))


def epoch_numbers(epochs: Rows) -> list[float]:
    return [number(row.get("epoch")) or 0.0 for row in epochs]


def accuracy_over_time(run: RunFiles) -> Chart:
    lines = _training_and_validation(run.epochs, training_seconds(run.epochs), "accuracy")
    return Chart("Accuracy against wall time", "seconds of training", "accuracy", lines, percent=True, from_zero=True)


def accuracy_over_epochs(run: RunFiles) -> Chart:
    lines = _training_and_validation(run.epochs, epoch_numbers(run.epochs), "accuracy")
    return Chart("Accuracy against epochs", "epoch", "accuracy", lines, percent=True, whole=True, marks=switches(run))


def loss_over_epochs(run: RunFiles) -> Chart:
    lines = _training_and_validation(run.epochs, epoch_numbers(run.epochs), "loss")
    return Chart("Loss against epochs", "epoch", "loss", lines, zero=True, whole=True, marks=switches(run))


def loss_over_batches(run: RunFiles) -> Chart:
    x, y = thinned(*_by_batch(run.steps, "loss"))
    group = len(run.steps) // max(len(x), 1)
    name = "training loss" if group <= 1 else f"training loss, mean of about {group}"
    return Chart("Loss of the mini-batches", "mini-batch", "loss", (Line(name, x, y),), zero=True)


def learning_rate(run: RunFiles) -> Chart:
    x, y = thinned(*_by_batch(run.steps, "lr"))
    return Chart("Learning rate", "mini-batch", "learning rate", (Line("learning rate", x, y),), zero=True)


def throughput(run: RunFiles) -> Chart:
    """Samples per second of training: of whole epochs, and within them."""
    epochs = Line("whole epoch", epoch_numbers(run.epochs), column(run.epochs, "samples_per_second"), points=True)
    within = Line("within the epoch", *_within(run.steps), faint=True, family=0)
    lines = (epochs, within) if epochs.known() else (Line(within.name, within.x, within.y),)
    return Chart("Throughput", "epoch", "samples per second", lines, zero=True, whole=True, marks=switches(run))


def utilisation(run: RunFiles) -> Chart:
    """The share of each epoch's training that every worker worked."""
    x = epoch_numbers(run.epochs)
    lines = tuple(Line(lane, x, [shares.get(lane) for shares in busy(run.epochs)]) for lane in workers(run.epochs))
    return Chart("Utilisation", "epoch", "share of the time at work", lines, percent=True, zero=True, whole=True)


def memory(run: RunFiles) -> Chart:
    values = [None if v is None else v / 1e6 for v in column(run.epochs, "memory_bytes")]
    line = Line("resident memory of the process", epoch_numbers(run.epochs), values)
    return Chart("Memory", "epoch", "MB", (line,), zero=True, whole=True)


def others(run: RunFiles) -> list[Chart]:
    """Numbers that the strategy reported beside the common ones, such as shares accepted or speculated."""
    charts = []
    for name, values in _extras(run.steps, _KNOWN_STEP).items():
        x, y = thinned([b for b, _ in values], [v for _, v in values])
        charts.append(_other(name, "mini-batch", x, y))
    for name, values in _extras(run.epochs, _KNOWN_EPOCH, "epoch").items():
        charts.append(_other(name, "epoch", [b for b, _ in values], [v for _, v in values]))
    return charts


def decided(run: RunFiles) -> list[Chart]:
    """Numbers in decisions that were made again and again: what was accepted of each mini-batch, say."""
    charts = []
    for name in often(run):
        rows = [row for row in run.decisions if row["name"] == name]
        for key, values in _extras(rows, _KNOWN_DECISION).items():
            if len({value for _, value in values}) > 1:
                x, y = thinned([b for b, _ in values], [v for _, v in values])
                charts.append(_other(f"{name}: {key}", "mini-batch", x, y))
    return charts


def often(run: RunFiles, times: int = 20) -> list[str]:
    """The names of decisions that are too many to be listed."""
    counts = Counter(row["name"] for row in run.decisions if row["name"] != "drain")
    return [name for name, count in counts.items() if count > times]


def switches(run: RunFiles) -> tuple[tuple[float, str], ...]:
    """Where a decision changed how the run goes on: (epoch, what)."""
    marks = []
    for decision in run.decisions:
        epoch = number(decision.get("epoch"))
        if decision["name"] == "switch" and epoch is not None:
            marks.append((epoch - 0.5, f"switch from {decision.get('from')} to {decision.get('to')}"))
    return tuple(marks)


def busy(epochs: Rows) -> list[dict[str, float]]:
    found = []
    for row in epochs:
        shares = row.get("busy")
        shares = shares if isinstance(shares, dict) else {}
        found.append({str(k): s for k, v in shares.items() if (s := number(v)) is not None})
    return found


def workers(epochs: Rows) -> list[str]:
    """The lanes that worked, the driver left out."""
    return sorted({lane for shares in busy(epochs) for lane, share in shares.items() if share > 0 and lane != "driver"})


def thinned(x: Sequence[float], y: Sequence[float | None]) -> tuple[list[float], list[float | None]]:
    """At most ``MOST_POINTS`` points: means of neighbouring values."""
    size = -(-len(x) // MOST_POINTS)
    if size <= 1:
        return list(x), list(y)
    groups = [slice(i, i + size) for i in range(0, len(x), size)]
    return [x[g][-1] for g in groups], [_mean(v for v in y[g] if v is not None) for g in groups]


def settled(values: Sequence[float | None], epochs: Rows) -> list[float]:
    """The values (one an epoch) without those of epochs in which training began or was resumed: there caches are cold
    and cuts are measured. All where there are no others."""
    pairs = [(value, row) for value, row in zip(values, epochs, strict=True) if value is not None]
    warm = [value for value, row in pairs if not row.get("began", row.get("epoch") == 1)]
    return warm or [value for value, _ in pairs]


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.fmean(found) if found else None


def _training_and_validation(epochs: Rows, x: list[float], what: str) -> tuple[Line, ...]:
    made = (
        Line("validation", x, column(epochs, f"validation_{what}"), family=0, points=len(x) <= 40),
        Line("training", x, column(epochs, f"train_{what}"), family=1),
    )
    return tuple(line for line in made if line.known())


def _by_batch(steps: Rows, key: str) -> tuple[list[float], list[float | None]]:
    return [float(row["batch"]) for row in steps], column(steps, key)


def _within(steps: Rows, most: int = 8) -> tuple[list[float], list[float | None]]:
    """Samples per second of pieces of each epoch, over the epoch with its fraction; of epochs long enough for two."""
    by_epoch: dict[float, list[Mapping[str, Any]]] = {}
    for row in steps:
        epoch = number(row.get("epoch"))
        if epoch is not None and number(row.get("seconds")) is not None:
            by_epoch.setdefault(epoch, []).append(row)
    most = max(1, min(most, MOST_POINTS // max(len(by_epoch), 1)))
    x: list[float] = []
    y: list[float | None] = []
    for epoch, rows in sorted(by_epoch.items()):
        pieces = min(most, (len(rows) - 1) // FEWEST_STEPS)
        if pieces < 2:
            continue
        bounds = sorted({round(i * (len(rows) - 1) / pieces) for i in range(pieces + 1)})
        for first, last in pairwise(bounds):
            elapsed = float(rows[last]["seconds"]) - float(rows[first]["seconds"])
            samples = sum(number(row.get("samples")) or 0 for row in rows[first + 1 : last + 1])
            if elapsed > 0 and samples:
                x.append(epoch - 1 + (first + last) / 2 / len(rows))
                y.append(samples / elapsed)
    return x, y


def _extras(rows: Rows, known: set[str], place: str = "batch") -> dict[str, list[tuple[float, float]]]:
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        at = number(row.get(place))
        for key, value in row.items():
            if key in known or at is None:
                continue
            items = value.items() if isinstance(value, dict) else [("", value)]
            for inner, item in items:
                one = number(item)
                if one is not None:
                    found.setdefault(f"{key} {inner}".strip(), []).append((at, one))
    return found


def _other(name: str, x_label: str, x: Sequence[float], y: Sequence[float | None]) -> Chart:
    share = any(word in name for word in ("share", "rate", "accept", "accuracy", "agreement", "hit"))
    values = [value for value in y if value is not None]
    percent = share and all(0 <= value <= 1 for value in values)
    title = name.replace("_", " ")
    return Chart(title[:1].upper() + title[1:], x_label, title, (Line(title, x, y),), percent=percent, zero=True)
