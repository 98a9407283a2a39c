"""What lies in a run folder, as far as it can be read; what cannot is said in one line each and passed over."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convoy.errors import CheckpointError

FILES = ("config.toml", "environment.json", "plan.json", "metrics.jsonl", "events.jsonl")


@dataclass(frozen=True, slots=True)
class Action:
    """One action of a worker; ``reads`` and ``writes`` are weights → version."""

    kind: str
    subject: str
    label: str
    lane: str
    batch: int
    part: int
    start: float
    end: float
    reads: Mapping[str, int]
    writes: Mapping[str, int]


@dataclass(slots=True)
class RunFiles:
    """A run folder in memory. ``plans`` are those told while running, each with the epochs (their numbers) that it
    was in force at the end of; ``problems`` what could not be read."""

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    plans: list[tuple[dict[str, Any], set[int]]] = field(default_factory=list)
    decisions: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


def read_run(path: Path | str) -> RunFiles:
    """The run folder at ``path``. Raises CheckpointError where there is none."""
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(
            f"{path} is no run folder", hint="give the folder that holds config.toml and events.jsonl"
        )
    if not any((path / name).is_file() for name in FILES):
        raise CheckpointError(f"{path} holds no file of a run", hint=f"one of {', '.join(FILES)} should be there")
    run = RunFiles(path)
    run.config_text = _text(run, "config.toml")
    if run.config_text:
        try:
            run.config = tomllib.loads(run.config_text)
        except tomllib.TOMLDecodeError as error:
            run.problems.append(f"config.toml is damaged: {error}")
    run.environment = _object(run, "environment.json")
    run.plan = _object(run, "plan.json")
    _events(run)
    _metrics(run)
    return run


def number(value: object) -> float | None:
    """``value`` as a finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _text(run: RunFiles, name: str) -> str:
    try:
        return (run.path / name).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        run.problems.append(f"{name} is missing")
    except OSError as error:
        run.problems.append(f"{name} cannot be read: {(error.strerror or str(error)).lower()}")
    return ""


def _object(run: RunFiles, name: str) -> dict[str, Any]:
    content = _text(run, name)
    if not content:
        return {}
    try:
        value = json.loads(content)
    except ValueError as error:
        run.problems.append(f"{name} is damaged: {error}")
        return {}
    if not isinstance(value, dict):
        run.problems.append(f"{name} is damaged: it holds no object")
        return {}
    return value


def _rows(run: RunFiles, name: str) -> Any:
    """The lines of a file of JSON lines that are objects; how many are not is a problem. A torn last line, which
    every killed run leaves, is none."""
    damaged, torn = 0, False
    try:
        with (run.path / name).open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if not line.strip():
                    continue
                try:
                    value = json.loads(line)
                except ValueError:
                    value = None
                if isinstance(value, dict):
                    yield value
                elif line.endswith("\n"):
                    damaged += 1
                else:
                    torn = True
    except FileNotFoundError:
        run.problems.append(f"{name} is missing")
    except OSError as error:
        run.problems.append(f"{name} cannot be read: {(error.strerror or str(error)).lower()}")
    if damaged:
        lines_are = "1 line is" if damaged == 1 else f"{damaged} lines are"
        run.problems.append(f"{name}: {lines_are} damaged and left out")
    if torn:
        run.problems.append(f"{name}: the last line was not finished")


def _events(run: RunFiles) -> None:
    epochs: dict[int, dict[str, Any]] = {}
    for row in _rows(run, "events.jsonl"):
        kind, data = row.get("kind"), row.get("data")
        data = data if isinstance(data, dict) else {}
        end = number(row.get("end")) or number(row.get("start")) or 0.0
        run.seconds = max(run.seconds, end)
        if kind == "action":
            _action(run, row, data)
        elif kind == "epoch" and isinstance(data.get("epoch"), int):
            epochs[data["epoch"]] = {**data, "batch": row.get("batch")}
            for _, numbers in run.plans:
                numbers.discard(data["epoch"])
            if run.plans:
                run.plans[-1][1].add(data["epoch"])
        elif kind == "plan":
            if not run.plans or run.plans[-1][0] != data:
                run.plans.append((data, set()))
        elif kind == "decision":
            run.decisions.append({"name": str(row.get("name")), "batch": row.get("batch"), "seconds": end, **data})
        elif kind == "warning":
            run.warnings.append(str(data.get("message", row.get("name"))))
        elif kind == "run":
            run.runs.append({**data, "name": row.get("name"), "seconds": end})
        elif kind == "step":
            run.steps.append({**data, "batch": row.get("batch"), "seconds": end})
    run.epochs = [epochs[key] for key in sorted(epochs)]
    run.steps = _once(run.steps)


def _action(run: RunFiles, row: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    start, end, batch = number(row.get("start")), number(row.get("end")), row.get("batch")
    if start is None or not isinstance(batch, int):
        return
    versions = [
        {str(k): v for k, v in found.items() if isinstance(v, int)} if isinstance(found := data.get(key), dict) else {}
        for key in ("reads", "writes")
    ]
    part = data.get("part")
    run.actions.append(
        Action(
            kind=str(data.get("kind", "")),
            subject=str(data.get("subject", "")),
            label=str(row.get("name", "")),
            lane=str(row.get("lane", "")),
            batch=batch,
            part=part if isinstance(part, int) else 0,
            start=start,
            end=start if end is None else end,
            reads=versions[0],
            writes=versions[1],
        )
    )


def _once(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every mini-batch once, by number: those that a killed run did after its last checkpoint were done again."""
    latest = {row["batch"]: row for row in steps if isinstance(row.get("batch"), int)}
    return [latest[batch] for batch in sorted(latest)]


def _metrics(run: RunFiles) -> None:
    """What events.jsonl did not have; both hold the same, so metrics.jsonl may be missing where the other is there."""
    before = len(run.problems)
    epochs: dict[int, dict[str, Any]] = {}
    steps = []
    for row in _rows(run, "metrics.jsonl"):
        if "train_loss" in row and isinstance(row.get("epoch"), int):
            epochs[row["epoch"]] = row
        elif "loss" in row:
            steps.append(row)
    if not run.steps:
        run.steps = _once(steps)
        run.seconds = max([run.seconds, *(number(row.get("seconds")) or 0.0 for row in steps)])
    if not run.epochs:
        run.epochs = [epochs[key] for key in sorted(epochs)]
    if run.runs and len(run.problems) > before and not (run.path / "metrics.jsonl").exists():
        run.problems[before:] = []  # nothing is lost
