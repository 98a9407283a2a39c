"""``convoy train``: a run from its options or its config file, or one that is resumed."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convoy.cli.config import TrainConfig, merge
from convoy.cli.errors import Interrupted
from convoy.cli.output import note, pairs, percent, result
from convoy.errors import CheckpointError, OptionError

_CHANGEABLE = ("epochs", "threads", "device", "max_memory", "save_every", "trace", "tensorboard")  # when resumed


def train(
    given: Mapping[str, Any],
    *,
    config: Path | None = None,
    resume: Path | None = None,
    json: bool = False,
    quiet: bool = False,
    debug: bool = False,
) -> int:
    """Train as ``given`` (option → value) says; returns the exit code."""
    if resume is not None and config is not None:
        raise OptionError("--resume and --config are both given", hint="a run has its own config; drop --config")
    asked = merge(given, config) if resume is None else _resumed(resume, given)
    from torch import nn

    from convoy.cli.saved import Facts
    from convoy.cli.setup import assemble, resolved
    from convoy.events.progress import Progress
    from convoy.training.callbacks import EarlyStopping
    from convoy.training.trainer import Trainer

    parts = assemble(asked)
    for sentence in parts.data.notes:
        note(f"note: {sentence}", quiet=quiet)
    progress = None if quiet else Progress(sys.stderr)
    watcher = _Watcher(Facts.of(asked.model, asked.data, parts.data), progress)
    board = _board(asked)
    trainer = Trainer(
        parts.model,
        nn.CrossEntropyLoss(),
        parts.optimizer,
        scheduler=parts.scheduler,
        scheduler_interval=parts.scheduler_interval,
        strategy=parts.strategy,
        settings=parts.settings,
        run_dir=asked.run_dir,
        name=asked.name,
        save_every=None if asked.save_every == "end" else asked.save_every,
        callbacks=[watcher] if progress is None else [watcher, progress],
        sinks=[] if board is None else [board],
        keep_best=asked.keep_best,
        early_stopping=None if asked.early_stopping is None else EarlyStopping(asked.early_stopping),
        config=resolved(asked),
        model_name=asked.model,
    )
    watcher.trainer = trainer
    if asked.strategy in ("pipelined", "hybrid"):
        note("measuring the network before training, some seconds", quiet=quiet)
    if resume is not None:
        trainer.load(resume)
    existed = Path(asked.run_dir).exists()
    try:
        history = trainer.fit(parts.data.train, parts.data.validation, epochs=asked.epochs)
    except BaseException as error:
        run = trainer.run_path
        if resume is None and not watcher.steps:
            _remove(run, None if existed else Path(asked.run_dir))
        if isinstance(error, KeyboardInterrupt):
            raise _interrupted(run) from None
        raise
    finally:
        if progress is not None:
            progress.close()
        if board is not None:
            board.close()
        if watcher.steps:
            _write_report(trainer.run_path)
    if not watcher.steps:
        note(f"nothing left to do: the run has its {asked.epochs} epochs (more with --epochs)", quiet=quiet)
    values = _summary(asked, history, trainer.run_path, watcher.plan)
    if watcher.steps and (text := _beside(history)) is not None:
        note(f"\n{text}\n", quiet=quiet)
    result(values, _text(values, history), as_json=json)
    return 0


def _board(asked: TrainConfig) -> Any:
    """The sink for TensorBoard, where one was asked for."""
    if asked.tensorboard is None:
        return None
    from convoy.events.tensorboard import TensorBoard

    return TensorBoard(asked.tensorboard)


def _write_report(run: Path | None) -> None:
    """report.html of a run that trained. What is wrong with it is no reason for a run to fail."""
    if run is None or not run.is_dir():
        return
    from convoy.report.write import write_report

    try:
        write_report(run)
    except Exception as error:
        note(f"note: no report was written ({error}); convoy report {run} tries again")


def _beside(history: Any) -> str | None:
    """The plan's table with what was measured, where the strategy predicts."""
    measured = history.measured
    if measured is None:
        return None
    plans = [history.plan, getattr(history.plan, "then", None), getattr(history.plan, "first", None)]
    alike = ("cuts", "clock", "accumulate", "correction")
    found: Any = next((p for p in plans if all(getattr(p, n, None) == getattr(measured, n) for n in alike)), None)
    return None if found is None else str(found.beside(measured))


class _Watcher:
    """Notes the plan and whether any mini-batch came through; writes what belongs to the weights."""

    def __init__(self, facts: Any, progress: Any) -> None:
        self.trainer: Any = None
        self.plan: Any = None
        self.steps = 0
        self._facts = facts
        self._progress = progress

    def __call__(self, event: Any) -> None:
        if event.kind == "step":
            self.steps += 1
        elif event.kind == "run" and event.name == "begin":
            from convoy.cli.saved import write_facts

            write_facts(self.trainer.run_path, self._facts)
        elif event.kind == "plan":  # a hybrid has two, one after the other
            plan = self.trainer.plan
            self.plan = event.data if plan is None else plan.to_dict()
            table = getattr(plan, "table", None)
            if table is not None and self._progress is not None:
                self._progress.say(f"\n{table()}\n")


def _resumed(path: Path, given: Mapping[str, Any]) -> TrainConfig:
    """The config of the run at ``path`` with what may change. Raises OptionError for what may not."""
    from convoy.training.checkpoint import find_checkpoint
    from convoy.training.run_dir import RunDirectory

    run = RunDirectory.open(find_checkpoint(path).path)
    file = run.path / "config.toml"
    if not file.is_file():
        raise CheckpointError(f"{run.path} has no config.toml", hint="resume it from Python, where its model is built")
    before = merge({}, file)
    after = merge(given, file).model_copy(update={"run_dir": str(run.path.parent), "name": None})
    for key in given:
        old, new = getattr(before, key), getattr(after, key)
        if old != new and key not in _CHANGEABLE:
            raise OptionError(
                f"--{key.replace('_', '-')} {new} differs from {old} of the run {run.path}",
                hint=f"a resumed run may change only {', '.join(_CHANGEABLE)}; start another run",
            )
    if after.epochs != before.epochs and after.lr_schedule != "constant":
        raise OptionError(
            f"--epochs {after.epochs} differs from {before.epochs}, for which the run's {after.lr_schedule} schedule "
            "of the learning rate was laid out",
            hint="resume with the same number, or start another run with --weights",
        )
    return after


def _interrupted(run: Path | None) -> Interrupted:
    if run is None or not any((run / "checkpoints").glob("[0-9]*")):
        return Interrupted("no checkpoint was written")
    return Interrupted(f"go on with: convoy train --resume {run}")


def _remove(run: Path | None, parent: Path | None) -> None:
    """Take away the folder of a run that did not begin, and its parent if it was made for it."""
    if run is not None:
        shutil.rmtree(run, ignore_errors=True)
    if parent is not None and parent.is_dir() and not any(parent.iterdir()):
        parent.rmdir()


def _summary(asked: TrainConfig, history: Any, run: Path | None, plan: Any) -> dict[str, Any]:
    last = history.last
    chosen = history[history.best_epoch - 1] if history.best_epoch else last
    seconds = sum(record.seconds for record in history.epochs)
    samples = sum(record.samples for record in history.epochs)
    return {
        "model": asked.model,
        "data": asked.data,
        "strategy": asked.strategy,
        "epochs": len(history),
        "best_epoch": history.best_epoch,
        "stopped_early": history.stopped_early,
        "train_loss": chosen.train_loss,
        "validation_loss": chosen.validation_loss,
        "validation_accuracy": chosen.validation_accuracy,
        "seconds": seconds,
        "samples_per_second": samples / seconds if seconds else None,
        "run": None if run is None else str(run),
        "history": [record.to_dict() for record in history.epochs],
        "plan": plan,
        "measured": None if history.measured is None else history.measured.to_dict(),
    }


def _text(values: Mapping[str, Any], history: Any) -> str:
    count = values["epochs"]
    which = f" (epoch {values['best_epoch']}, the best)" if values["best_epoch"] else ""
    rows = [
        ("accuracy", f"{percent(values['validation_accuracy'])} of the validation samples{which}"),
        ("loss", f"{values['validation_loss']:.4f}"),
        ("time", f"{values['seconds']:.1f} s for {count} epoch{'s' * (count > 1)}, validation not counted"),
        ("speed", f"{values['samples_per_second']:.0f} samples/s"),
        ("run", str(values["run"])),
    ]
    if values["stopped_early"]:
        rows.insert(2, ("stopped", values["stopped_early"]))
    return pairs(rows)
