"""``convoy compare``: several strategies on the same work, in turns, and one report."""

from __future__ import annotations

import json as json_module
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convoy.cli.compare_config import CONFIG_FILE, CompareConfig, build
from convoy.cli.errors import Interrupted
from convoy.cli.output import note, result
from convoy.errors import CheckpointError, MachineError, OptionError

if TYPE_CHECKING:
    from convoy.cli.setup import Parts


def compare(
    given: Mapping[str, Any],
    *,
    strategy: list[str] | None = None,
    minutes: float | None = None,
    seeds: int | None = None,
    target: float | None = None,
    config: Path | None = None,
    resume: Path | None = None,
    json: bool = False,
    quiet: bool = False,
    debug: bool = False,
) -> int:
    """Compare as was asked; returns the exit code, 1 where a run failed."""
    if resume is not None:
        asked, folder = _resumed(resume, given, strategy, minutes, seeds, target, config)
    else:
        asked = build(given, strategies=strategy, minutes=minutes, seeds=seeds, target=target, file=config)
        folder = _folder(asked)
    from convoy.cli.saved import Facts, write_facts
    from convoy.cli.setup import assemble, make, resolved
    from convoy.comparison import Workload
    from convoy.comparison import compare as carry_out
    from convoy.report.write import write_report

    # Everything is built once beforehand, so that what is wrong is said before anything trains.
    entrants = {label: make(one) for label, one in asked.runs.items()}
    parts = assemble(asked.first)
    for sentence in parts.data.notes:
        note(f"note: {sentence}", quiet=quiet)
    settings, chance = parts.settings, 1 / len(parts.data.classes)
    facts = Facts.of(asked.first.model, asked.first.data, parts.data)
    _warm_up(parts)
    del parts
    _write_config(folder, asked)

    def workload(seed: int) -> Workload:
        from torch import nn

        made = assemble(asked.first.model_copy(update={"seed": seed}))
        return Workload(
            model=made.model,
            loss=nn.CrossEntropyLoss(),
            optimizer=made.optimizer,
            train=made.data.train,
            validation=made.data.validation,
            scheduler=made.scheduler,
            scheduler_interval=made.scheduler_interval,
        )

    def run_config(label: str, seed: int) -> Mapping[str, Any]:
        return resolved(asked.runs[label].model_copy(update={"seed": seed}))

    try:
        found = carry_out(
            workload,
            entrants,
            epochs=asked.epochs,
            minutes=asked.minutes,
            seeds=asked.seeds,
            target=asked.target,
            directory=folder,
            settings=settings,
            title=f"{asked.first.model} · {asked.first.data}",
            progress=lambda line: note(line, quiet=quiet),
            config=dict(asked.shared),
            run_config=run_config,
            chance=chance,
            begun=lambda run: write_facts(run, facts),
        )
    except KeyboardInterrupt:
        _write_report(folder)
        raise Interrupted(f"go on with: convoy compare --resume {folder}") from None
    page, _ = write_report(folder)
    values = {**found.to_dict(), "directory": str(folder), "report": str(page)}
    result(values, f"{found.table()}\nreport: {page}", as_json=json)
    return 1 if found.failed else 0


def _warm_up(parts: Parts) -> None:
    """One step of the plain loop, thrown away: what a process does only once would count as the first strategy's time.
    What is wrong with it is said when the first strategy trains."""
    from torch import nn

    with suppress(Exception):
        x, y = next(iter(parts.data.train))
        nn.CrossEntropyLoss()(parts.model(x), y).backward()
        parts.optimizer.step()


def _write_report(folder: Path) -> None:
    """The page of a comparison that was interrupted. What is wrong with it does not keep the user."""
    from convoy.report.write import write_report

    try:
        write_report(folder)
    except Exception as error:
        note(f"note: no report was written ({error}); convoy report {folder} tries again")


def _folder(asked: CompareConfig) -> Path:
    """A new folder for the comparison."""
    stamp = datetime.now().strftime("%Y-%m-%d-%H%M%S")
    name = asked.first.name or f"{stamp}-{re.sub(r'[^A-Za-z0-9_]+', '-', asked.first.model).strip('-')}-comparison"
    if Path(name).name != name or name in (".", ".."):
        raise OptionError(f"name {name!r} is no folder name", hint="leave out slashes; --run-dir says where")
    folder = Path(asked.first.run_dir) / name
    if folder.exists():
        raise OptionError(f"folder {folder} exists already", hint=f"choose another --name, or --resume {folder}")
    return folder


def _write_config(folder: Path, asked: CompareConfig) -> None:
    """comparison.toml: what was asked, so that the comparison can be gone on with, or repeated."""
    from convoy.training.files import machine_errors, write_file
    from convoy.training.toml import dump_toml

    with machine_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / CONFIG_FILE, dump_toml(asked.shared))


def _resumed(
    folder: Path,
    given: Mapping[str, Any],
    strategy: list[str] | None,
    minutes: float | None,
    seeds: int | None,
    target: float | None,
    config: Path | None,
) -> tuple[CompareConfig, Path]:
    """What the comparison in ``folder`` asked for; there may be more seeds of it, and another target."""
    if given or strategy or minutes is not None or config is not None:
        raise OptionError(
            "a comparison is gone on with as it was begun",
            hint="beside --resume only --seeds and --target may be given",
        )
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise CheckpointError(f"{folder} holds no {CONFIG_FILE}", hint="give the folder of a comparison")
    asked = build({}, strategies=None, minutes=None, seeds=seeds, target=target, file=file)
    before = _seeds_before(folder)
    if asked.seeds < before:
        raise OptionError(
            f"--seeds is {asked.seeds}, but the comparison has {before}", hint="give more, or leave it out"
        )
    return asked, folder


def _seeds_before(folder: Path) -> int:
    from convoy.comparison.comparison import COMPARISON_FILE

    path = folder / COMPARISON_FILE
    if not path.exists():
        return 0
    try:
        return len(json_module.loads(path.read_text(encoding="utf-8"))["seeds"])
    except OSError as error:
        raise MachineError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {type(error).__name__}: {error}") from error
