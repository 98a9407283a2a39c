"""What the plan predicted beside what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from convoy.report.curves import busy, settled
from convoy.report.files import RunFiles, number
from convoy.report.workers import action_seconds

Row = tuple[str, float | None, float | None, str]
"""What, predicted, measured, unit."""


def plans(run: RunFiles) -> list[tuple[dict[str, Any], set[int]]]:
    """Every plan that was in force, with its epochs; of plan.json where no event told one."""
    if run.plans:
        found: list[tuple[dict[str, Any], set[int]]] = []
        for plan, epochs in run.plans:  # a resumed run tells its plan once more
            if found and found[-1][0] == plan:
                found[-1] = (plan, found[-1][1] | epochs)
            else:
                found.append((plan, epochs))
        return found
    if not run.plan:
        return []
    parts = [part for key in ("first", "then") if isinstance(part := run.plan.get(key), dict)]
    every = {int(row["epoch"]) for row in run.epochs}
    return [(part, every if len(parts) == 1 else set()) for part in parts] if parts else [(run.plan, every)]


def seconds_per_step(run: RunFiles, epochs: set[int]) -> float | None:
    """The median over the epochs, without those in which training began where there are others; the lower of two
    middle ones, so that it is an epoch's that was seen."""
    counts: dict[int, int] = {}
    for row in run.steps:
        if isinstance(row.get("epoch"), int):
            counts[row["epoch"]] = counts.get(row["epoch"], 0) + 1
    rows = [row for row in run.epochs if row["epoch"] in epochs]
    values = [
        seconds / counts[row["epoch"]] if (seconds := number(row.get("seconds"))) and counts.get(row["epoch"]) else None
        for row in rows
    ]
    known = settled(values, rows)
    return statistics.median_low(known) if known else None


def compared(run: RunFiles, plan: Mapping[str, Any], epochs: set[int]) -> list[Row]:
    """The rows of one plan."""
    predicted = number(plan.get("step_seconds"))
    measured = seconds_per_step(run, epochs)
    rows: list[Row] = [("time of a step", _ms(predicted), _ms(measured), "ms")]
    batch, alone = number(plan.get("batch_size")), number(plan.get("sequential_seconds"))
    if batch:
        rows.append(("throughput", _over(batch, predicted), _over(batch, measured), "samples/s"))
    if alone:
        rows.append(("speed-up over one worker", _over(alone, predicted), _over(alone, measured), "×"))
    rows += _stages(run, plan, predicted, epochs)
    return [row for row in rows if row[1] is not None or row[2] is not None]


def ratio(row: Row) -> str:
    """Measured over predicted."""
    _, predicted, measured, _ = row
    return "–" if not predicted or measured is None else f"{measured / predicted:.2f}"


def memory_rows(plan: Mapping[str, Any]) -> list[tuple[str, int, int | None, int | None]]:
    """Stage, bytes of weights (with gradients and optimizer state), bytes of activations held, bytes handed on."""
    parts = number(plan.get("accumulate")) or 1
    rows = []
    for stage in stages(plan):
        weights, kept = number(stage.get("weight_bytes")), number(stage.get("activation_bytes"))
        delay, handed = number(stage.get("delay")) or 0, number(stage.get("handed_bytes"))
        if weights is None:
            continue
        training = number(stage.get("training_bytes"))
        weights += 2 * weights if training is None else training  # plans of older runs do not say
        held = None if kept is None else round((delay + 1) * kept / parts)
        rows.append((f"stage {stage.get('index')}", round(weights), held, None if handed is None else round(handed)))
    return rows


def stages(plan: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    found = plan.get("stages")
    return [stage for stage in found if isinstance(stage, dict)] if isinstance(found, list) else []


def _stages(run: RunFiles, plan: Mapping[str, Any], step: float | None, epochs: set[int]) -> list[Row]:
    rows: list[Row] = []
    measured = action_seconds(run) if stages(plan) else {}
    for stage in stages(plan):
        index = str(stage.get("index"))
        for kind, name in (("F", "forward"), ("B", "backward")):
            predicted = number(stage.get(f"{name}_seconds"))
            rows.append((f"{name} of stage {index}", _ms(predicted), _ms(measured.get((kind, index))), "ms"))
    if plan.get("placement") == "colocated" and step:
        rows_of = [row for row in run.epochs if row["epoch"] in epochs]
        kept = busy(rows_of)
        for stage in stages(plan):
            lane = f"worker {stage.get('index')}"
            own = (number(stage.get("forward_seconds")) or 0) + (number(stage.get("backward_seconds")) or 0)
            known = settled([shares.get(lane) for shares in kept], rows_of)
            share = statistics.fmean(known) * 100 if known else None
            rows.append((f"{lane} at work", own / step * 100 if own else None, share, "%"))
    return rows


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def _over(what: float, seconds: float | None) -> float | None:
    return what / seconds if seconds else None
