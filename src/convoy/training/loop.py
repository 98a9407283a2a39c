"""The epochs of a run: batches in, results read when they are there, drains where consistent weights are needed."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from convoy.engines.interrupts import Untouched
from convoy.errors import DataError, InternalError
from convoy.schedule.decision import Decision
from convoy.strategies.base import Step, StepResult, Turn, TurnResult
from convoy.strategies.batch import batch_size, split_batch
from convoy.strategies.scoring import count_correct
from convoy.training.bus import Bus
from convoy.training.checkpoint import free_name, prune, save_checkpoint
from convoy.training.divergence import LossCheck
from convoy.training.evaluation import Evaluation
from convoy.training.feed import Feed
from convoy.training.history import EpochRecord, EpochSums
from convoy.training.interrupt import Interrupt
from convoy.training.memory import resident_bytes
from convoy.training.run_dir import RunDirectory
from convoy.training.setup import Setup, TrainingState, Watches
from convoy.training.snapshot import snapshot

_BEHIND = 8  # results that may wait unread before the driver waits for one
_KEEP = 2  # checkpoints kept beside the best


@dataclass(frozen=True, slots=True)
class _Entered:
    """A mini-batch that went in: the epoch (from 0), its number there, samples, learning rate, when."""

    epoch: int
    index: int
    samples: int
    lr: float
    time: float


class Loop:
    """One ``fit``: from where ``state`` stands to ``epochs`` in all. Holds nothing that a checkpoint does not."""

    def __init__(
        self,
        *,
        setup: Setup,
        state: TrainingState,
        watches: Watches,
        step: Step,
        feed: Feed,
        bus: Bus,
        run: RunDirectory | None,
        interrupt: Interrupt,
        validate: Callable[[], Evaluation] | None,
    ) -> None:
        self.setup = setup
        self.state = state
        self.watches = watches
        self.step = step
        self.bus = bus
        self.stop_reason: str | None = None
        self.best_model: dict[str, Any] | None = None
        self._feed = feed
        self._run = run
        self._interrupt = interrupt
        self._validate = validate
        self._losses = LossCheck(state.first_losses)
        self._entered: deque[_Entered] = deque()
        self._pending: deque[tuple[_Entered, StepResult]] = deque()
        self._inside = False  # a step is under way: the weights may be half changed
        self._plan: Any = None
        self._scheduled = False
        self._begun = False
        self._since: float | None = None  # training time is counted from here
        self._saved_at: tuple[int, int] | None = None
        self._drains_each_epoch = (
            validate is not None
            or watches.stopping is not None
            or watches.best is not None
            or setup.watches_metric
            or (setup.save_every == "epoch" and run is not None)
        )

    # --- the way through ---------------------------------------------------------------------------------------

    def run(self, epochs: int) -> None:
        """Train to ``epochs`` epochs in all, or until something asks to stop; then drain."""
        while self.state.epoch < epochs and self.stop_reason is None:
            self._epoch(epochs)
        self.drain("end")

    def _epoch(self, epochs: int) -> None:
        state = self.state
        resumed = state.now
        state.now = None
        if resumed is not None:
            batches = self._feed.resume(state.epoch, state.batch, state.epoch_start, resumed)
        else:
            batches = self._feed.epoch(state.epoch)
        state.epoch_start = self._feed.epoch_start
        if not state.sums or state.sums[-1].epoch != state.epoch:
            state.sums.append(EpochSums(state.epoch))
        if not self._begun:
            state.sums[-1].began = self._begun = True
        self._since = time.perf_counter()
        self.step.begin_epoch(state.epoch, epochs, self._feed.batches)
        try:
            for batch in self._fetched(batches):
                self._train(*split_batch(batch))
                self._between()
                if self.stop_reason is not None:
                    self._lap()
                    return
        finally:
            close = getattr(batches, "close", None)
            if close is not None:
                close()
        if state.batch == 0:
            raise DataError(
                f"the training loader yields no batch in epoch {state.epoch + 1}",
                hint="check its data set and batch size; a generator can be gone through only once",
            )
        self._end_epoch()

    def _fetched(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches; a loader that breaks because Ctrl-C reached its worker processes counts as interrupted."""
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except Exception:
                self._interrupt.check()
                raise
            yield batch

    def _train(self, x: Any, y: Any) -> None:
        """Hand one mini-batch to the strategy."""
        setup, state = self.setup, self.state
        samples = 0 if isinstance(x, Turn) else batch_size(x)
        entered = _Entered(state.epoch, state.batch, samples, setup.learning_rate(), self.bus.now())
        self._inside = True
        self._entered.append(entered)
        try:
            result = self.step(x, y)
        except Untouched:
            self._entered.pop()
            self._inside = False
            raise
        state.batch += 1
        state.batches += 1
        if result is not None:
            self._returned(result)
        if setup.scheduler is not None and setup.scheduler_interval == "batch":
            for _ in range(result.steps if isinstance(result, TurnResult) else 1):
                self._schedule()
        self._inside = False
        self._write_plan()

    def _between(self) -> None:
        """Between two batches: read what is there, save, see whether someone wants to stop."""
        self.read(_BEHIND)
        every = self.setup.save_every
        if isinstance(every, int) and self._run is not None and self.state.batches % every == 0:
            self.checkpoint("checkpoint")
        if self._run is not None:
            self._run.check()
        self._interrupt.check()

    def _end_epoch(self) -> None:
        state = self.state
        record: EpochRecord | None = None
        if self._drains_each_epoch:
            self.drain("validation" if self._validate is not None else "end of epoch")
            validation = self._validated()
            sums = state.sums.pop(0)
            record = self._record(sums, validation)
            self._losses.validation(record)
        else:
            self._lap()
            state.sums[-1].total = state.batch
            self._record_whole_epochs()
        self._tell_end(record)
        if self.setup.scheduler is not None and self.setup.scheduler_interval == "epoch":
            self._schedule(record)
        best = self._watch(record) if record is not None else False
        state.epoch, state.batch, state.epoch_start = state.epoch + 1, 0, None
        if self._run is not None and (best or self.setup.save_every == "epoch"):
            self.checkpoint("checkpoint", best=best)
        self._interrupt.check()

    def _tell_end(self, record: EpochRecord | None) -> None:
        if record is None:
            self.step.end_epoch()
            return
        accuracy, loss = record.validation_accuracy, record.validation_loss
        self.step.end_epoch(validation_accuracy=accuracy, validation_loss=loss)

    # --- results -----------------------------------------------------------------------------------------------

    def _returned(self, result: StepResult) -> None:
        if not self._entered:
            raise InternalError(f"the strategy returned batch {result.batch}, which did not go in")
        self._pending.append((self._entered.popleft(), result))

    def read(self, behind: int = 0) -> None:
        """Take in the results that are there, waiting only while more than ``behind`` are unread."""
        pending = self._pending
        while pending and (len(pending) > behind or pending[0][1].ready):
            entered, result = pending[0]
            loss = float(result.loss)
            steps = result.steps if isinstance(result, TurnResult) else None
            self._losses.batch(loss, result.batch, entered.epoch + 1, entered.lr, steps=steps)
            if isinstance(result, TurnResult):
                samples, correct = result.samples, result.correct
            else:
                samples, correct = entered.samples, count_correct(result.output, result.target)
            sums = next(s for s in self.state.sums if s.epoch == entered.epoch)
            sums.add(result.batch, loss, correct, samples, entered.lr)
            pending.popleft()
            data = {
                "epoch": entered.epoch + 1,
                "index": entered.index,
                "loss": loss,
                "correct": correct,
                "samples": samples,
                "lr": entered.lr,
                "in_flight": len(self._entered),
                **getattr(result, "measures", {}),
            }
            self.bus.emit("step", "step", data, batch=result.batch, start=entered.time)
            self._record_whole_epochs()

    def drain(self, reason: str) -> None:
        """Finish what is in flight and read all results; recorded as a decision where something was in flight."""
        if self._entered:
            self.bus.decide(Decision("drain", self.state.batches, "user", {"reason": reason}))
        for result in self.step.drain():
            self._returned(result)
        self._lap()
        if self._entered:
            raise InternalError(f"{len(self._entered)} batches did not come out of the drain")
        self.read()
        self.state.step = self.step.state()

    def _record_whole_epochs(self) -> None:
        """Epochs that ended without a drain are recorded when their last result is read."""
        sums = self.state.sums
        while sums and sums[0].total == sums[0].batches:
            self._record(sums.pop(0), None)

    def _record(self, sums: EpochSums, validation: Evaluation | None) -> EpochRecord:
        record = sums.record(self.bus.busy.take(sums.seconds), validation)
        self.state.history.epochs.append(record)
        data = {**record.to_dict(), "memory_bytes": resident_bytes()}
        self.bus.emit("epoch", f"epoch {record.epoch}", data, batch=sums.last_batch)
        return record

    def _validated(self) -> Evaluation | None:
        if self._validate is None:
            return None
        evaluation = self._validate()
        self._since = time.perf_counter()
        return evaluation

    def _watch(self, record: EpochRecord) -> bool:
        """Early stopping and keep-best; whether this epoch is the best."""
        stopping, best = self.watches.stopping, self.watches.best
        if stopping is not None and self.setup.early_stopping is not None:
            stopping.update(record)
            if stopping.waited >= self.setup.early_stopping.patience:
                epochs = f"{stopping.waited} epoch{'s' if stopping.waited > 1 else ''}"
                self.state.history.stopped_early = f"{stopping.metric} has not improved for {epochs}"
                self.stop_reason = self.state.history.stopped_early
        if best is None or not best.update(record):
            return False
        self.state.history.best_epoch = record.epoch
        self.best_model = {
            name: value.detach().clone() if isinstance(value, torch.Tensor) else value
            for name, value in self.setup.model.state_dict().items()
        }
        return True

    # --- the rest ----------------------------------------------------------------------------------------------

    def checkpoint(self, reason: str, *, best: bool = False) -> Path | None:
        """Drain and write a checkpoint, where there is a run folder and none of this moment is in it yet."""
        self.drain(reason)
        state, run = self.state, self._run
        position = (state.epoch, state.batch)
        if run is None or self._saved_at == position:
            return None
        pause = time.perf_counter()
        state.now = self._feed.random_state()
        name = free_name(run.checkpoints, state.batches)
        if best:
            state.best_checkpoint = name
        try:
            body = snapshot(self.setup, state, self.watches, state.best_checkpoint)
            path = save_checkpoint(run.checkpoints, state.batches, self.setup.model.state_dict(), body, name=name)
        finally:
            state.now = None
        self._saved_at = position
        prune(run.checkpoints, _KEEP, [state.best_checkpoint])
        if self._since is not None:
            self._since += time.perf_counter() - pause
        return path

    def interrupted(self) -> Path | None:
        """After KeyboardInterrupt: finish what is in flight and save. Nothing is saved when a step was cut in half."""
        if self._inside:
            self.bus.emit("warning", "interrupt", {"message": "interrupted within a batch: no checkpoint was written"})
            return None
        path = self.checkpoint("interrupt") if self.state.batches else None
        self.hold()
        return path

    @property
    def inside(self) -> bool:
        """Whether a step was cut in half, so that the weights cannot be trusted."""
        return self._inside

    def hold(self) -> None:
        """Note where the generators stand, so that another ``fit`` can go on from here."""
        if self.state.batch or self.state.epoch_start is not None:
            self.state.now = self._feed.random_state()

    def _lap(self) -> None:
        """Count the time since the last lap to the epoch that is going on."""
        if self._since is None or not self.state.sums:
            return
        now = time.perf_counter()
        self.state.sums[-1].seconds += now - self._since
        self._since = now

    def _schedule(self, record: EpochRecord | None = None) -> None:
        scheduler = self.setup.scheduler
        if scheduler is None:
            return
        # PyTorch warns on the first step when it has not seen optimizer.step(): a pipeline's stages step their own.
        first, self._scheduled = not self._scheduled, True
        with warnings.catch_warnings() if first else contextlib.nullcontext():
            if first:
                warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*before.*optimizer.step.*")
            if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                if record is not None:
                    loss = record.train_loss if record.validation_loss is None else record.validation_loss
                    scheduler.step(loss)
            else:
                scheduler.step()

    def _write_plan(self) -> None:
        """Into the run folder, once there is one and when it changed. The strategy itself reports it as an event."""
        plan = self.step.plan()
        if plan is self._plan or plan == self._plan:
            return
        changed, self._plan = self._plan is not None, plan
        if self._run is not None:
            self._run.write_plan(plan, changed=changed)
