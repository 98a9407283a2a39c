"""Training under any strategy, with validation, checkpoints, events and resuming."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convoy.engines.driver import callers_threads
from convoy.errors import CheckpointError, OptionError, RunError
from convoy.events.event import Sink
from convoy.events.warn import issue
from convoy.strategies.base import DataStrategy, Loss, Settings, Step, Strategy
from convoy.strategies.registry import make_strategy, strategy_values
from convoy.training.advice import advise
from convoy.training.bus import Bus
from convoy.training.callbacks import EarlyStopping, KeepBest, check_count
from convoy.training.checkpoint import find_checkpoint, read_checkpoint
from convoy.training.evaluation import Evaluation, evaluate
from convoy.training.feed import Feed
from convoy.training.history import History
from convoy.training.interrupt import Interrupt
from convoy.training.loop import Loop
from convoy.training.run_dir import RunDirectory
from convoy.training.setup import Scheduler, Setup, TrainingState, Watches
from convoy.training.snapshot import load_model, restore


class Trainer:
    """Trains the user's own model with the user's own loss, optimizer and scheduler under a strategy.

    - ``loss(output, target)``: a scalar, the mean over the batch.
    - ``strategy``: an instance, or a name ("sequential", ...) for its defaults.
    - ``run_dir``: the folder to make the run's folder in (called ``name``, or after date, model and strategy); None
      writes nothing. A resumed run goes on in its own folder.
    - ``save_every``: "epoch", a number of batches, or None: only at the end and after Ctrl-C.
    - ``callbacks``: functions on events, called in this thread between batches; ``stop()`` ends the run from one.
      ``sinks``: functions on events, called at once, also from worker threads. Without either, what a run warns of
      is issued as a ``ConvoyWarning``.
    - ``keep_best``: True, or a ``KeepBest``; the best epoch's weights are in the model when ``fit`` returns.
    - ``config``: what ``config.toml`` shall hold instead of the trainer's own options; ``model_name`` likewise.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        *,
        scheduler: Scheduler | None = None,
        scheduler_interval: str = "epoch",
        strategy: Strategy | str = "sequential",
        settings: Settings | None = None,
        run_dir: str | os.PathLike[str] | None = None,
        name: str | None = None,
        save_every: str | int | None = None,
        callbacks: Iterable[Sink] = (),
        sinks: Iterable[Sink] = (),
        keep_best: bool | KeepBest = False,
        early_stopping: EarlyStopping | None = None,
        config: Mapping[str, Any] | None = None,
        model_name: str | None = None,
    ) -> None:
        if save_every is not None and run_dir is None:
            raise OptionError(f"save_every={save_every!r} needs a run_dir", hint="for example run_dir='runs'")
        self._setup = Setup(
            model=model,
            loss=loss,
            optimizer=optimizer,
            scheduler=scheduler,
            scheduler_interval=scheduler_interval,
            strategy=make_strategy(strategy) if isinstance(strategy, str) else strategy,
            settings=settings or Settings(),
            save_every=save_every,
            early_stopping=early_stopping,
            keep_best=(KeepBest() if keep_best else None) if isinstance(keep_best, bool) else keep_best,
        )
        self._parent = None if run_dir is None else Path(run_dir)
        self._name = name
        self._config = config
        self._model_name = model_name or type(model).__name__
        self._callbacks = tuple(callbacks)
        self._sinks = tuple(sinks)
        self._threads = self._setup.settings.threads or callers_threads()
        self._state = TrainingState()
        self._watches = Watches.of(self._setup)
        self._run: RunDirectory | None = None
        self._loop: Loop | None = None  # while fit runs
        self._best_model: Mapping[str, Any] | None = None
        self._finished = False
        self._broken = False

    @property
    def history(self) -> History:
        """The epochs so far, also of the run that was resumed."""
        return self._state.history

    @property
    def plan(self) -> Any:
        """What the strategy decided, while ``fit`` runs and once the first batch was seen; else None."""
        return None if self._loop is None else self._loop.step.plan()

    @property
    def run_path(self) -> Path | None:
        """The run's folder, once ``fit`` made it or ``load`` found it."""
        return None if self._run is None else self._run.path

    def fit(self, train: Iterable[Any], validation: Iterable[Any] | None = None, *, epochs: int = 1) -> History:
        """Train to ``epochs`` epochs in all; after ``load`` or Ctrl-C from where the run stood. Called again after it
        was finished, it trains ``epochs`` more.

        ``train`` yields pairs (x, y), or mappings. Ctrl-C ends the run after the current batch with a checkpoint; a
        second one at once. Raises Diverged when a loss is not finite or absurd, WorkerFailed, Stalled, MachineError.
        """
        check_count("epochs", epochs)
        if validation is None and self._setup.strategy.needs_validation:
            raise OptionError(
                f"strategy {self._setup.strategy.name} decides by validation, and fit was given no validation data",
                hint="pass a second loader: fit(train, validation)",
            )
        if self._broken:
            raise RunError(
                "this run failed and its weights cannot be trusted",
                hint="call load(run folder), or make a new model and Trainer",
            )
        goal = epochs
        if self._finished:
            goal += self._state.epoch
            self._state.history.stopped_early = None
            if self._watches.stopping is not None:
                self._watches.stopping.waited = 0
        if self._state.epoch >= goal:
            return self.history
        self._finished = False
        feed = Feed(train)
        run = self._open_run(epochs)
        if not self._setup.model.training:
            self._setup.model.train()
        try:
            self._fit(feed, validation, goal, run)
        finally:
            if run is not None:
                run.close()
        if run is not None:
            run.check()
        return self.history

    def _fit(self, feed: Feed, validation: Iterable[Any] | None, goal: int, run: RunDirectory | None) -> None:
        setup, state = self._setup, self._state
        own = [] if run is None else run.event_sinks(trace=setup.settings.trace)
        heard: tuple[Sink, ...] = self._sinks if self._sinks or self._callbacks else (issue,)
        bus = Bus([*own, *heard], self._callbacks, trace=setup.settings.trace)
        step, feed = self._bind(feed, goal, bus.from_step)
        try:
            if state.step is not None:
                step.restore(state.step)
            with Interrupt() as interrupt:
                validate = None if validation is None else self._validation(validation, interrupt)
                loop = self._loop = Loop(
                    setup=setup,
                    state=state,
                    watches=self._watches,
                    step=step,
                    feed=feed,
                    bus=bus,
                    run=run,
                    interrupt=interrupt,
                    validate=validate,
                )
                bus.emit("run", "begin", self._description(feed, goal))
                self._guarded(loop, bus, goal)
        finally:
            self._loop = None
            self._note_plan(step, run)
            step.close()

    def _bind(self, feed: Feed, goal: int, sink: Sink) -> tuple[Step, Feed]:
        """The bound strategy and its feed: the user's batches, or turns where it orders the samples itself."""
        setup, strategy = self._setup, self._setup.strategy
        if not isinstance(strategy, DataStrategy):
            step = strategy.bind(setup.model, setup.loss, setup.optimizer, settings=setup.settings, sink=sink)
            return step, feed
        turns = strategy.bind_data(
            setup.model,
            setup.loss,
            setup.optimizer,
            feed.source,
            passes=goal,
            scheduler=setup.scheduler,
            per_step=setup.scheduler_interval == "batch",
            settings=setup.settings,
            sink=sink,
        )
        return turns, Feed(turns.source)

    def _guarded(self, loop: Loop, bus: Bus, goal: int) -> None:
        """Run the loop; whatever ends it is said in an event, and Ctrl-C leaves a checkpoint."""
        state = self._state
        before = state.batches
        data: dict[str, Any]
        try:
            loop.run(goal)
            loop.checkpoint("end")
        except KeyboardInterrupt:
            self._broken = loop.inside
            path = loop.interrupted()
            data = {"checkpoint": None if path is None else str(path)}
            bus.emit("run", "interrupted", data, batch=state.batches)
            raise
        except BaseException as error:
            self._broken = loop.inside or state.batches != before
            advise(error, getattr(loop.step, "suspects", self._setup.strategy.suspects), self._run)
            data = {
                "status": "failed",
                "error": f"{type(error).__name__}: {error}",
                "batches": state.batches,
            }
            bus.emit("run", "end", data, batch=state.batches)
            raise
        self._finished = loop.stop_reason is None or state.history.stopped_early is not None
        if not self._finished:
            loop.hold()
        self._best_model = loop.best_model or self._best_model
        if self._best_model is not None and self._finished:
            load_model(self._setup.model, self._best_model)
        status = "finished" if loop.stop_reason is None else "stopped"
        data = {"status": status, "reason": loop.stop_reason, "batches": state.batches}
        bus.emit("run", "end", data, batch=state.batches)

    def _note_plan(self, step: Step, run: RunDirectory | None) -> None:
        """What was planned and, where the strategy predicts it, what came."""
        history, measured = self._state.history, getattr(step, "measured", None)
        history.plan, history.measured = step.plan(), None if measured is None else measured()
        if run is not None and history.measured is not None:
            run.write_measured(history.measured)

    def stop(self) -> None:
        """End the run after the current batch, from a callback. A later ``fit`` goes on from there."""
        if self._loop is not None and self._loop.stop_reason is None:
            self._loop.stop_reason = "stop() was called"

    def evaluate(self, loader: Iterable[Any]) -> Evaluation:
        """Loss and accuracy of the model as it is, in eval mode, on all cores. Its train/eval flags are restored."""
        if self._loop is not None:  # from a callback: what is in flight must land first
            self._loop.drain("evaluation")
        setup = self._setup
        return evaluate(setup.model, setup.loss, loader, setup.settings, self._threads)

    def _validation(self, loader: Iterable[Any], interrupt: Interrupt) -> Any:
        def watched() -> Iterator[Any]:
            for batch in loader:
                interrupt.check()
                yield batch

        setup = self._setup
        return lambda: evaluate(setup.model, setup.loss, watched(), setup.settings, self._threads)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Take up a run from its folder (the latest checkpoint that is whole) or from one checkpoint.

        The trainer must hold equal objects: model, optimizer, scheduler, strategy. Raises CheckpointError.
        """
        if self._loop is not None:
            raise RunError("load was called while fit runs", hint="call it before fit")
        checkpoint = find_checkpoint(Path(path))
        watches = Watches.of(self._setup)
        self._state = restore(checkpoint, self._setup, watches)
        self._watches = watches
        self._broken = self._finished = False
        self._best_model = None
        best = self._state.best_checkpoint
        if watches.best is not None and best is not None:
            try:
                self._best_model = read_checkpoint(checkpoint.path.with_name(best)).model
            except CheckpointError:
                # It may have been removed by hand; the next best epoch takes its place.
                watches.best.best = None
        if self._parent is not None:
            self._run = RunDirectory.open(checkpoint.path)

    # --- the run's folder --------------------------------------------------------------------------------------

    def _open_run(self, epochs: int) -> RunDirectory | None:
        if self._parent is None:
            return None
        if self._run is None:
            strategy = self._setup.strategy.name
            self._run = RunDirectory.create(self._parent, model=self._model_name, strategy=strategy, name=self._name)
            self._run.write_config(self._config if self._config is not None else self._own_config(epochs))
            self._run.write_environment()
        return self._run

    def _own_config(self, epochs: int) -> dict[str, Any]:
        setup = self._setup
        early = setup.early_stopping
        return {
            "model": self._model_name,
            "epochs": epochs,
            "save_every": setup.save_every,
            "scheduler_interval": setup.scheduler_interval,
            "strategy": strategy_values(setup.strategy),
            "settings": asdict(setup.settings),
            "early_stopping": None if early is None else asdict(early),
        }

    def _description(self, feed: Feed, goal: int) -> dict[str, Any]:
        return {
            "model": self._model_name,
            "strategy": self._setup.strategy.name,
            "epochs": goal,
            "batches_per_epoch": feed.batches,
            "resumed_from": self._state.batches or None,
            "seed": self._setup.settings.seed,
        }
