"""The folder of a run: what was asked, where it ran, what was planned, what happened, and checkpoints."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from convoy.errors import CheckpointError, OptionError
from convoy.events.chrome import ChromeTrace
from convoy.events.event import Event
from convoy.events.jsonl import JsonLines, read_lines
from convoy.events.plain import plain
from convoy.training.files import cannot_write, machine_errors, write_file, write_json
from convoy.training.toml import dump_toml

_DISTRIBUTION = "convoy-train"


class RunDirectory:
    """``runs/<date-time>-<model>-<strategy>/``. Nothing in it is written over; a resumed run adds to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sinks: list[JsonLines | ChromeTrace] = []

    @classmethod
    def create(
        cls, parent: Path | str, *, model: str, strategy: str, name: str | None = None, now: datetime | None = None
    ) -> RunDirectory:
        """A new folder in ``parent`` (made where needed), called ``name`` or after date, model and strategy.

        Raises OptionError when ``name`` is taken or no file name, MachineError when it cannot be made.
        """
        parent = Path(parent)
        if name is not None and (not name or Path(name).name != name or name in (".", "..")):
            raise OptionError(f"run name {name!r} is no folder name", hint="leave out slashes; --run-dir says where")
        stamp = (now or datetime.now()).strftime("%Y-%m-%d-%H%M%S")
        stem = name or f"{stamp}-{_slug(model)}-{_slug(strategy)}"
        with machine_errors(parent / stem):
            parent.mkdir(parents=True, exist_ok=True)
            number, path = 1, parent / stem
            while True:
                try:
                    path.mkdir()
                except FileExistsError:
                    if name is not None:
                        raise OptionError(
                            f"run folder {path} exists already", hint="choose another name, or resume it"
                        ) from None
                    number += 1
                    path = parent / f"{stem}-{number}"
                else:
                    break
        run = cls(path)
        with machine_errors(run.checkpoints):
            run.checkpoints.mkdir()
        return run

    @classmethod
    def open(cls, path: Path | str) -> RunDirectory:
        """The run folder at ``path``, or the one that holds the checkpoint at ``path``."""
        path = Path(path)
        for candidate in (path, path.parent, path.parent.parent):
            if (candidate / "checkpoints").is_dir():
                return cls(candidate)
        raise CheckpointError(f"{path} is no run folder", hint="give the folder that holds config.toml and checkpoints")

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    def write_config(self, config: Mapping[str, Any]) -> None:
        """``config.toml``, unless it is there."""
        path = self.path / "config.toml"
        if not path.exists():
            with machine_errors(path):
                write_file(path, dump_toml(config))

    def write_environment(self) -> None:
        """``environment.json``, unless it is there."""
        path = self.path / "environment.json"
        if not path.exists():
            with machine_errors(path):
                write_json(path, environment())

    def write_plan(self, plan: Any, *, changed: bool = False) -> None:
        """``plan.json``, unless it is there; in place of the one before where that ``changed`` in this run."""
        path = self.path / "plan.json"
        if changed or not path.exists():
            with machine_errors(path):
                write_json(path, plain(plan_values(plan)))

    def write_measured(self, measured: Any) -> None:
        """``measured.json``: the plan with the times that the run took, of its last part."""
        path = self.path / "measured.json"
        with machine_errors(path):
            write_json(path, plain(plan_values(measured)))

    def event_sinks(self, *, trace: bool) -> list[JsonLines | ChromeTrace]:
        """Sinks for metrics.jsonl and events.jsonl (continued where they exist) and, when asked, the trace."""
        self._sinks = []
        with machine_errors(self.path):
            self._sinks.append(JsonLines(self.metrics, row=metrics_row))
            self._sinks.append(JsonLines(self.events))
            if trace:
                self._sinks.append(ChromeTrace(_free(self.path, "trace", ".json.gz")))
        return list(self._sinks)

    def check(self) -> None:
        """Raise MachineError if one of the sinks could not write."""
        for sink in self._sinks:
            if sink.error is not None:
                raise cannot_write(sink.path, sink.error) from sink.error

    def close(self) -> None:
        """Close the sinks. May be called twice; never raises, ``check`` does."""
        for sink in self._sinks:
            sink.close()

    def read_metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl. Where a killed run was resumed, the rows that it trained again stand once."""
        rows: list[dict[str, Any]] = []
        if not self.metrics.exists():
            return rows
        with self.metrics.open(encoding="utf-8") as lines:
            for row in read_lines(lines):
                if "resumed_from" in row:
                    rows = [kept for kept in rows if kept["batch"] < row["resumed_from"]]
                    continue
                if "train_loss" in row:
                    rows = [kept for kept in rows if "train_loss" not in kept or kept["epoch"] != row["epoch"]]
                rows.append(row)
        return rows


def metrics_row(event: Event) -> dict[str, Any] | None:
    """A line of metrics.jsonl: one per mini-batch and one per epoch (with ``train_loss``). A resumed run says where
    it began."""
    if event.kind == "step":
        keys = ("epoch", "loss", "correct", "samples", "lr")
        row = {"batch": event.batch, **{key: event.data.get(key) for key in keys}}
        return {**row, "seconds": round(event.end, 6)}
    if event.kind == "epoch":
        return {"batch": event.batch, **event.data}
    if event.kind == "run" and event.data.get("resumed_from") is not None:
        return {"resumed_from": event.data["resumed_from"]}
    return None


def plan_values(plan: Any) -> Any:
    """A plan as plain values."""
    if hasattr(plan, "to_dict"):
        return plan.to_dict()
    if hasattr(plan, "to_json"):
        return json.loads(plan.to_json())
    return asdict(plan) if is_dataclass(plan) and not isinstance(plan, type) else plan


def environment() -> dict[str, Any]:
    """What the numbers of a run may depend on."""
    try:
        own = version(_DISTRIBUTION)
    except PackageNotFoundError:
        own = "source"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "convoy": own,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _processor() -> str:
    if sys.platform == "linux":
        try:
            found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        except OSError:
            found = None
        if found is not None:
            return found[1]
    return platform.processor() or platform.machine()


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-").lower() or "model"


def _free(folder: Path, stem: str, suffix: str) -> Path:
    path, number = folder / f"{stem}{suffix}", 1
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}{suffix}"
    return path
