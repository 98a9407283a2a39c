"""One run of a comparison: a Trainer that pauses at the end of each epoch."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from convoy.comparison.comparison import Comparison
from convoy.comparison.turns import Paused
from convoy.comparison.workload import MakeWorkload, Workload
from convoy.errors import OptionError
from convoy.events.event import Event
from convoy.strategies.base import Settings, Strategy
from convoy.training.random_state import random_state, restore_random_state
from convoy.training.trainer import Trainer

_ENDLESS = 1_000_000  # epochs, where the budget is time


class Runner:
    """Makes the runs of a comparison. ``run_config``: what the config.toml of a (label, seed) shall hold. ``begun`` is
    called with the folder of every run that begins or goes on."""

    def __init__(
        self,
        comparison: Comparison,
        strategies: Mapping[str, Strategy],
        workload: MakeWorkload,
        settings: Settings,
        place: Path,
        run_config: Callable[[str, int], Mapping[str, Any]] | None,
        begun: Callable[[Path], object] | None = None,
    ) -> None:
        self._comparison = comparison
        self._strategies = strategies
        self._workload = workload
        self._settings = settings
        self._place = place
        self._run_config = run_config
        self._begun = begun or (lambda folder: None)
        self._built: list[Any] = []

    def begin(self, seed: int, labels: Sequence[str]) -> dict[str, Paused]:
        """Label → its run, not started yet."""
        self._built.clear()  # of another seed, so nothing that trains now
        return {label: self._paused(label, seed) for label in labels}

    def _paused(self, label: str, seed: int) -> Paused:
        return Paused(label, lambda paused: self._train(label, seed, paused), seeded(seed))

    def _train(self, label: str, seed: int, paused: Paused) -> None:
        """From the beginning, or the last checkpoint, to the end of the budget; in the run's own thread."""
        work = self._workload(seed)
        self._check_new(work, label)
        comparison, outcome = self._comparison, self._comparison.outcome(label, seed)
        minutes, epochs = comparison.budget.get("minutes"), comparison.budget.get("epochs")
        goal = _ENDLESS if epochs is None else int(epochs)

        def spent() -> bool:
            return minutes is not None and bool(outcome.epochs) and outcome.seconds()[-1] >= minutes * 60

        heard: set[str] = set()  # of each sort of warning the first: the others differ by a number or two

        def hear(event: Event) -> None:
            if event.kind == "run" and event.name == "begin":
                self._begun(folder)
            elif event.kind == "warning" and event.name not in heard:
                heard.add(event.name)
                outcome.warnings.append(str(event.data.get("message", "")))
            elif event.kind == "epoch":
                outcome.epochs = list(trainer.history.epochs)
                if spent() or (len(outcome.epochs) < goal and not paused.pause()):
                    trainer.stop()

        name = f"{_slug(label)}-seed{seed}"
        folder = self._place / "runs" / name
        trainer = Trainer(
            work.model,
            work.loss,
            work.optimizer,
            scheduler=work.scheduler,
            scheduler_interval=work.scheduler_interval,
            strategy=self._strategies[label],
            settings=replace(self._settings, seed=seed),
            run_dir=folder.parent,
            name=name,
            save_every="epoch",
            callbacks=[hear],
            config=None if self._run_config is None else self._run_config(label, seed),
        )
        paused.hurry = trainer.stop
        if any((folder / "checkpoints").glob("[0-9]*")):
            trainer.load(folder)
        elif folder.exists():  # it ended before its first checkpoint
            shutil.rmtree(folder)
        outcome.epochs = list(trainer.history.epochs)
        outcome.path = folder.relative_to(self._place).as_posix()
        if not spent():
            trainer.fit(work.train, work.validation, epochs=goal)

    def _check_new(self, work: Workload, label: str) -> None:
        """Refuse objects that another strategy trains already."""
        for thing in (work.model, work.optimizer):
            if any(thing is other for other in self._built):
                raise OptionError(
                    f"workload(seed) returned the same {type(thing).__name__} for {label} as for another strategy",
                    hint="build model and optimizer inside workload",
                )
            self._built.append(thing)


def seeded(seed: int) -> Any:
    """The state that the global random generators have after they were seeded; they are left as they were."""
    outside = random_state()
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        return random_state()
    finally:
        restore_random_state(outside)


def _slug(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.+]+", "-", label).strip("-.")[:80] or "strategy"
