"""The page of a comparison: what comparison.json says, drawn."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from convoy.drawing.chart import Chart, Line, chart_svg
from convoy.drawing.table import csv_text, html_table, shown
from convoy.errors import CheckpointError
from convoy.report import curves
from convoy.report.files import number
from convoy.report.page import Page, Table, Words, figure, section, table
from convoy.report.run_page import flat

COMPARISON_FILE = "comparison.json"
_RUN = ("strategy", "seed", "status", "epochs")


def read_comparison(folder: Path | str) -> dict[str, Any]:
    """The values of comparison.json. Raises CheckpointError where they cannot be read or are none."""
    path = Path(folder) / COMPARISON_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} holds no {COMPARISON_FILE}", hint="give the folder of a comparison") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}",
            hint="each of its runs has a report of its own: convoy report on the folders under runs/",
        ) from error
    if not isinstance(values, dict) or not isinstance(values.get("outcomes"), list) or "findings" not in values:
        raise CheckpointError(f"{path} holds no comparison", hint="it should have outcomes and findings")
    return values


def comparison_page(values: Mapping[str, Any]) -> Page:
    """The page of a comparison's values."""
    found = values["findings"]
    runs = _runs(values)
    finished = all(run["status"] == "finished" for run in runs)
    failed = sum(run["status"] == "failed" for run in runs)
    status = ("finished", "good") if finished else (f"{failed} failed", "bad") if failed else ("unfinished", "open")
    sections = (
        section("result", "Result", _table(found), _sentences(found)),
        section("accuracy", "Accuracy and loss", figure(_over_epochs(runs, "validation_accuracy", "accuracy")),
                figure(_over_time(runs, "train_loss", "training loss")),
                figure(_over_epochs(runs, "validation_loss", "validation loss"))),
        section("time", "Time", figure(epoch_times(runs)), figure(_over_epochs(runs, "samples_per_second",
                "samples per second")), _busy(values)),
        section("runs", "Runs", table("Runs", ["strategy", "seed", "status", "epochs", "best accuracy", "folder"],
                                      [_run_row(run) for run in runs])),
        section("configuration", "Configuration and environment",
                table("Strategies", ["strategy", "fields"], [[k, shown(v)] for k, v in values["strategies"].items()]),
                table("Configuration", ["option", "value"], [list(row) for row in flat(values.get("config") or {})]),
                table("Environment", ["", "value"], [list(row) for row in flat(values.get("environment") or {})])),
    )  # fmt: skip
    return Page(
        title=str(values.get("title", "comparison")),
        status=status,
        headline=_headline(values, found) or ("There is nothing to compare yet.",),
        tiles=(),
        facts=tuple(_facts(values)),
        first=figure(_over_time(runs, "validation_accuracy", "accuracy"))
        or figure(_over_time(runs, "train_loss", "loss")),
        sections=tuple(part for part in sections if part is not None),
        problems=tuple(found.get("warnings") or ()),
        made_by=f"convoy {(values.get('environment') or {}).get('convoy', '')}".strip(),
    )


def _headline(values: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[str, ...]:
    """The first sentence about each strategy; all of them where there are few."""
    said = tuple(found.get("sentences") or ())
    if len(said) <= 3:
        return said
    _, *others = values["strategies"]
    first = [next((s for s in said if f"{label} " in s), None) for label in others]
    return tuple(s for s in dict.fromkeys(first) if s is not None)[:4]


def notebook(values: Mapping[str, Any]) -> str:
    """The result of a comparison for a notebook: the table, the curves over time, the sentences."""
    found = values["findings"]
    chart = _over_time(_runs(values), "validation_accuracy", "accuracy")
    words = "".join(f"<p>{Markup.escape(sentence)}</p>" for sentence in found["sentences"])
    words += "".join(f"<p>warning: {Markup.escape(warning)}</p>" for warning in found["warnings"])
    drawn = "" if chart.empty else f'<div style="max-width:640px">{chart_svg(chart)}</div>'
    return f"<div>{html_table(found['head'], found['rows'])}{drawn}{words}</div>"


def _runs(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The runs that can be read."""
    runs = [run for run in values["outcomes"] if isinstance(run, dict) and all(key in run for key in _RUN)]
    return [{**run, "epochs": [e for e in run["epochs"] if isinstance(e, dict)]} for run in runs]


def _by_strategy(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        found.setdefault(str(run["strategy"]), []).append(run)
    return found


def _over_epochs(runs: Sequence[Mapping[str, Any]], key: str, name: str) -> Chart:
    """The mean over the seeds of every strategy, and each seed thin."""
    lines = []
    for family, (strategy, own) in enumerate(_by_strategy(runs).items()):
        longest = max((len(run["epochs"]) for run in own), default=0)
        every = [curves.column(run["epochs"], key) for run in own]
        means = []
        for place in range(longest):
            known = [column[place] for column in every if place < len(column)]
            there = [value for value in known if value is not None]
            means.append(statistics.fmean(there) if there else None)
        lines.append(Line(strategy, [float(i + 1) for i in range(longest)], means, family=family))
        lines += [_thin(run, curves.epoch_numbers(run["epochs"]), key, family) for run in own if len(own) > 1]
    percent = "accuracy" in key
    title = f"{name[:1].upper()}{name[1:]} against epochs"
    return Chart(title, "epoch", name, tuple(lines), percent=percent, zero=not percent, whole=True)


def _over_time(runs: Sequence[Mapping[str, Any]], key: str, name: str) -> Chart:
    """Over seconds of training: times differ between seeds, so the line is the mean of times and of values."""
    lines = []
    for family, (strategy, own) in enumerate(_by_strategy(runs).items()):
        times = [curves.training_seconds(run["epochs"]) for run in own if run["epochs"]]
        values = [curves.column(run["epochs"], key) for run in own if run["epochs"]]
        shortest = min(map(len, times), default=0)
        x = [statistics.fmean(column[i] for column in times) for i in range(shortest)]
        y = [None if None in (v := [c[i] for c in values]) else statistics.fmean(w for w in v if w is not None)
             for i in range(shortest)]  # fmt: skip
        lines.append(Line(strategy, x, y, family=family, points=shortest <= 30))
        lines += [_thin(run, curves.training_seconds(run["epochs"]), key, family) for run in own if len(own) > 1]
    percent = "accuracy" in key
    title = f"{name[:1].upper()}{name[1:]} against wall time"
    return Chart(title, "seconds of training", name, tuple(lines), percent=percent, zero=not percent, from_zero=True)


def _thin(run: Mapping[str, Any], x: list[float], key: str, family: int) -> Line:
    return Line(f"{run['strategy']}, seed {run['seed']}", x, curves.column(run["epochs"], key), family, faint=True)


def epoch_times(runs: Sequence[Mapping[str, Any]]) -> Chart:
    """Seconds per epoch in the order of the rounds: what disturbed the machine shows in all strategies at once."""
    chart = _over_epochs(runs, "seconds", "seconds per epoch")
    return Chart("Time of each epoch", chart.x_label, chart.y_label, chart.lines, zero=True, whole=True)


def _table(found: Mapping[str, Any]) -> Table:
    head, rows = found["head"], found["rows"]
    spread = "± is half of the 95 % interval of the mean over the seeds (Student's t). "
    note = (
        "Seconds are of training alone; epochs in which training began or was resumed, where cuts are measured, are "
        "left out of the time per epoch, and counted in that to the target."
    )
    if any("±" in str(cell) for row in rows for cell in row):
        note = spread + note
    return Table("Strategies", Markup(html_table(head, rows)), csv_text(head, rows), note, wide=True)


def _sentences(found: Mapping[str, Any]) -> Words | None:
    return Words("In words", tuple(found["sentences"])) if found.get("sentences") else None


def _busy(values: Mapping[str, Any]) -> Table | None:
    rows: dict[str, list[float]] = {}
    for turn in values.get("turns") or ():
        if isinstance(turn, dict) and (load := number(turn.get("other_cores"))) is not None:
            rows.setdefault(str(turn.get("strategy")), []).append(load)
    note = "Cores that other programs kept busy during the turns of each strategy."
    made = [[name, len(v), statistics.fmean(v), max(v)] for name, v in rows.items()]
    return table("Other load", ["strategy", "turns", "mean cores", "most"], made, note)


def _run_row(run: Mapping[str, Any]) -> list[Any]:
    known = [v for v in curves.column(run["epochs"], "validation_accuracy") if v is not None]
    best = f"{max(known) * 100:.2f} %" if known else "–"
    state = run["status"] if not run.get("error") else f"{run['status']}: {run['error']}"
    return [run["strategy"], run["seed"], state, len(run["epochs"]), best, run.get("path") or "–"]


def _facts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    e = values.get("environment") or {}
    budget = ", ".join(f"{amount:g} {unit} each" for unit, amount in (values.get("budget") or {}).items())
    machine = ", ".join(str(part) for part in (e.get("processor"), f"{e.get('cores')} cores") if part)
    rows = [
        ("strategies", ", ".join(values["strategies"])), ("budget", budget),
        ("seeds", shown(values.get("seeds"))), ("order", "an epoch each in turns, the order rotating"),
        ("machine", machine),
        ("software", f"convoy {e.get('convoy')}, PyTorch {e.get('torch')}, Python {e.get('python')}"),
        ("began", str(e.get("started", ""))),
    ]  # fmt: skip
    return [(name, value) for name, value in rows if value]
