"""The page of one run, section by section."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from markupsafe import Markup

from convoy.drawing.lanes import describe, lanes_svg
from convoy.drawing.table import csv_text, shown, value_tables, words
from convoy.report import curves, first_screen, plans, workers
from convoy.report.files import RunFiles, number, read_run
from convoy.report.page import Figure, Page, Section, Table, Words, figure, render, section, table

_TIME = "Seconds of training alone: validation and saving are not counted, measuring before the first step is."


def report_run(path: Path | str) -> str:
    """The HTML page of the run folder at ``path``. Raises CheckpointError where there is none."""
    return render(run_page(read_run(path)))


def run_page(run: RunFiles) -> Page:
    """The page of a run, of whatever of it there is."""
    sections = (
        _accuracy(run),
        section("throughput", "Throughput", figure(curves.throughput(run), "The thin line: pieces of each epoch.")),
        section("timeline", "A few steps", _timeline(run), _durations(run)),
        _utilisation(run),
        section("staleness", "Staleness", _staleness(run), _mean_staleness(run)),
        section(
            "strategy",
            "What the strategy reported",
            *map(figure, [*curves.others(run), *curves.decided(run)]),
            _decisions(run),
        ),
        _memory(run),
        _plan(run),
        _configuration(run),
        _again(run),
    )
    return Page(
        title=first_screen.title(run),
        status=first_screen.status(run),
        headline=tuple(first_screen.headline(run)),
        tiles=tuple(first_screen.tiles(run)),
        facts=tuple(first_screen.facts(run)),
        first=figure(curves.accuracy_over_time(run), _TIME) or figure(curves.loss_over_epochs(run))
        or figure(curves.loss_over_batches(run)),
        sections=tuple(part for part in sections if part is not None),
        problems=tuple(run.problems),
        made_by=f"convoy {run.environment.get('convoy', '')}".strip(),
    )  # fmt: skip


def _accuracy(run: RunFiles) -> Section | None:
    return section(
        "accuracy",
        "Accuracy and loss",
        figure(curves.accuracy_over_epochs(run)),
        figure(curves.loss_over_epochs(run)),
        figure(curves.loss_over_batches(run)),
        figure(curves.learning_rate(run)),
        _epochs(run),
    )


def _epochs(run: RunFiles) -> Table | None:
    keys = ("epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "lr",
            "samples_per_second", "seconds")  # fmt: skip
    there = [key for key in keys if any(number(row.get(key)) is not None for row in run.epochs)]
    rows = [[number(row.get(key)) if key != "epoch" else row["epoch"] for key in there] for row in run.epochs]
    return table("Epochs", [words(key) for key in there], rows)


def _timeline(run: RunFiles) -> Figure | Words | None:
    lanes = workers.timeline(run)
    if lanes is None:
        return None
    head = ("lane", "action", "start ms", "end ms")
    rows = [
        (s.lane, s.name, round((s.start - lanes.start) * 1e3, 4), round((s.end - lanes.start) * 1e3, 4))
        for s in lanes.spans
    ]
    note = f"{describe(lanes)}. Hatching is waiting. The number behind the point is the mini-batch."
    return Figure(lanes.title, Markup(lanes_svg(lanes)), csv_text(head, rows), note, wide=True)


def _durations(run: RunFiles) -> Table | None:
    found = {key: value for key, value in workers.action_seconds(run).items() if key[0] != "E"}
    slowest = sorted(found, key=lambda key: -found[key])[:24]
    rows = [[workers.KINDS.get(kind, kind), subject, found[kind, subject] * 1e3] for kind, subject in slowest]
    note = f"Of the {len(found)} kinds of action the 24 that take longest." if len(found) > 24 else ""
    return table("Median time per mini-batch", ["action", "of", "ms"], rows, note)


def _utilisation(run: RunFiles) -> Section | None:
    lanes = curves.workers(run.epochs)
    per_lane = [
        (lane, curves.settled([shares.get(lane) for shares in curves.busy(run.epochs)], run.epochs)) for lane in lanes
    ]
    rows = [[lane, f"{sum(v) / len(v):.1%}", f"{min(v):.1%}", f"{max(v):.1%}"] for lane, v in per_lane if v]
    note = "Without epochs in which training began, where there are others: cuts are measured and caches cold in them."
    drawn = figure(curves.utilisation(run)) if lanes else None
    return section(
        "utilisation", "Utilisation", drawn, table("At work", ["worker", "mean", "least", "most"], rows, note)
    )


def _staleness(run: RunFiles) -> Figure | None:
    note = "As observed: updates of a weight between the forward pass that read it and the update of that mini-batch."
    return figure(workers.staleness(run), note)


def _mean_staleness(run: RunFiles) -> Table | None:
    rows: list[list[Any]] = [list(row) for row in workers.mean_staleness(run)]
    if len(rows) > 24:
        rows = sorted(rows, key=lambda row: -row[1])[:24]
    return table("Observed", ["weights", "mean", "greatest", "mini-batches seen"], rows)


def _decisions(run: RunFiles) -> Table | None:
    """Drains, and others that are many, are counted; the rest is listed."""
    many = {"drain", *curves.often(run)}
    counts = Counter(
        (d["name"], str(d.get("cause", "")), str(d.get("reason", ""))) for d in run.decisions if d["name"] in many
    )
    rows: list[list[Any]] = [[name, f"{count} times", cause, reason] for (name, cause, reason), count in counts.items()]
    for decision in run.decisions:
        if decision["name"] not in many:
            rest = {k: v for k, v in decision.items() if k not in ("name", "batch", "seconds", "cause")}
            batch = decision.get("batch")
            where = "" if batch is None else f"before mini-batch {batch}"
            rows.append([decision["name"], where, str(decision.get("cause", "")), shown(rest)])
    note = f"{len(rows) - 60} more are in events.jsonl." if len(rows) > 60 else ""
    return table("Decisions", ["decision", "when", "cause", "content"], rows[:60], note)


def _memory(run: RunFiles) -> Section | None:
    tables = []
    for plan, _ in plans.plans(run):
        rows: list[list[Any]] = [
            [stage, *(None if v is None else v / 1e6 for v in values)] for stage, *values in plans.memory_rows(plan)
        ]
        tables.append(
            table(
                f"Planned, {plan.get('strategy', '')}",
                ["", "weights, gradients, optimizer state MB", "activations held MB", "handed on per mini-batch MB"],
                rows,
            )
        )
    note = "Of the whole process, PyTorch's own libraries among it, at the end of each epoch."
    return section("memory", "Memory", figure(curves.memory(run), note), *tables)


def _plan(run: RunFiles) -> Section | None:
    parts: list[Table | None] = []
    found = plans.plans(run)
    for place, (plan, epochs) in enumerate(found, 1):
        which = f"Plan {place} of {len(found)}" if len(found) > 1 else "Plan"
        name = f"{which}: {plan.get('strategy', '')}"
        rows: list[list[Any]] = [
            [what, predicted, measured, unit, plans.ratio((what, predicted, measured, unit))]
            for what, predicted, measured, unit in plans.compared(run, plan, epochs)
        ]
        parts.append(table(f"{name}, predicted and measured", ["", "predicted", "measured", "unit", "ratio"], rows))
        whole = Markup(value_tables(plan))
        parts.append(Table(f"{name}, all of it", whole, csv_text(("key", "value"), flat(plan)), ""))
    return section("plan", "Plan", *parts)


def _configuration(run: RunFiles) -> Section | None:
    notes = Words("Warnings", tuple(dict.fromkeys(run.warnings))) if run.warnings else None
    return section(
        "configuration",
        "Configuration and environment",
        notes,
        table("Configuration", ["option", "value"], [list(row) for row in flat(run.config)]),
        table("Environment", ["", "value"], [list(row) for row in flat(run.environment)]),
    )


def _again(run: RunFiles) -> Section | None:
    """How to get the same numbers again."""
    if not run.config_text:
        return None
    e = run.environment
    versions = " ".join(
        f"{name}=={e[key]}" for name, key in (("convoy-train", "convoy"), ("torch", "torch")) if key in e
    )
    by_command = isinstance(run.config.get("strategy"), str) and bool(run.config.get("data"))
    commands = ["convoy train --config config.toml"] if by_command else []
    threads = e.get("threads")
    return section(
        "again",
        "How to reproduce",
        Words("Software", (f"pip install {versions}",), code=True) if versions else None,
        Words("Command", tuple(commands), code=True) if commands else None,
        Words("config.toml", tuple(run.config_text.rstrip().splitlines()), code=True),
        Words(
            "What holds",
            (
                "The same data, seed, versions, processor and number of threads give the same bits; sums depend on "
                f"the number of threads{f' ({threads} per operator here)' if threads else ''}.",
                "Without its name, or with another one, the configuration makes a new run folder.",
            ),
        ),
    )


def flat(values: dict[str, Any], path: str = "") -> list[tuple[str, Any]]:
    """Nested values as (dotted name, value)."""
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{path}{key}"
        if isinstance(value, dict):
            rows += flat(value, f"{name}.")
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            for number_, item in enumerate(value, 1):
                rows += flat(item, f"{name}.{number_}.")
        else:
            rows.append((name, shown(value) if isinstance(value, (list, bool)) else value))
    return rows
