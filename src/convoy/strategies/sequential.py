"""The plain loop: forward, backward, update, one batch after the other, in the calling thread.

It is the baseline of every comparison, so nothing stands between the user's module and PyTorch. Only a model with
random layers runs as the captured program, whose dropout draws from generators keyed by (seed, node, batch, part):
then its numbers do not depend on the strategy.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import nn

from convoy.drawing.table import value_tables
from convoy.errors import ConvoyError, ModelError, OptionError, WorkerFailed, hint_for
from convoy.events.event import Event, EventKind, Sink
from convoy.events.warn import tell
from convoy.graph.capture import capture
from convoy.graph.graph import Graph
from convoy.graph.random import Keyed, keyed
from convoy.strategies.base import Loss, Settings, Step, StepResult, Strategy
from convoy.strategies.batch import arguments, call, channels_last, detach, prepare_model, to_device

PRECISIONS = ("float32", "bfloat16")
INNER = ("whole", "tasks")


@dataclass(frozen=True)
class Sequential(Strategy):
    """One batch after the other, all cores (or ``Settings.threads``) on each.

    ``inner``: "whole" runs the user's module and leaves the cores to PyTorch; "tasks" runs each step as a graph of
    tasks, node by node and tile by tile, on workers of one thread each (CPUs only).
    """

    name: ClassVar[str] = "sequential"

    inner: str = "whole"

    def __post_init__(self) -> None:
        if self.inner not in INNER:
            raise OptionError(f"inner is {self.inner!r}", hint=f"choose one of {', '.join(INNER)}")

    def bind(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        *,
        settings: Settings | None = None,
        sink: Sink | None = None,
    ) -> Step:
        if self.inner == "tasks":
            from convoy.strategies.tasks.step import TaskStep

            return TaskStep(model, loss, optimizer, settings or Settings(), sink)
        return SequentialStep(model, loss, optimizer, settings or Settings(), sink)


@dataclass(frozen=True, slots=True)
class SequentialPlan:
    """What sequential training decided: which code runs, on how many threads."""

    strategy: str
    threads: int
    runs: str  # "module" or "captured program"
    random_layers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def table(self) -> str:
        """The plan as text for a person."""
        runs = "your module as it is"
        if self.random_layers:
            runs = f"the captured program, in which {', '.join(self.random_layers)} draw by (seed, layer, batch)"
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return "\n".join([f"sequential: {threads}, {runs}", *(f"note: {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        return f"<div>{value_tables(self.to_dict())}</div>"

    def to_dict(self) -> dict[str, Any]:
        return {
            "strategy": self.strategy,
            "workers": 1,
            "threads": self.threads,
            "runs": self.runs,
            "random_layers": list(self.random_layers),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class SequentialResult:
    """A finished mini-batch; on CUDA, reading a value waits for the device."""

    batch: int
    loss: torch.Tensor
    output: Any
    target: Any
    done: torch.cuda.Event | None = field(default=None, repr=False)

    @property
    def ready(self) -> bool:
        return self.done is None or bool(self.done.query())  # type: ignore[no-untyped-call]


class SequentialStep:
    """``Sequential`` bound to a model, a loss and an optimizer."""

    def __init__(
        self, model: nn.Module, loss: Loss, optimizer: torch.optim.Optimizer, settings: Settings, sink: Sink | None
    ) -> None:
        if settings.precision not in PRECISIONS:
            raise OptionError(f"precision {settings.precision!r} is unknown", hint=f"one of: {', '.join(PRECISIONS)}")
        if settings.threads is not None and settings.threads < 1:
            raise OptionError(f"threads must be at least 1, not {settings.threads}", hint="leave it out for all cores")
        if settings.clip is not None and not settings.clip > 0:
            raise OptionError(f"clip must be greater than 0, not {settings.clip}", hint="leave it out for no clipping")
        self._model = model
        self._loss = loss
        self._optimizer = optimizer
        self._settings = settings
        self._sink = sink
        self._device = torch.device(settings.device)
        self._parameters = list(model.parameters())
        self._captured: Graph | None = None  # where the model has random layers
        self._looked = False
        self._batch = 0
        self._plan: SequentialPlan | None = None
        self._threads_before: int | None = None

    def __call__(self, x: Any, y: Any) -> SequentialResult:
        x, y = to_device(x, self._device), to_device(y, self._device)
        if self._settings.channels_last:
            x = channels_last(x)
        if self._plan is None:
            self._begin()
        batch = self._batch
        self._optimizer.zero_grad(set_to_none=True)
        try:
            if not self._looked and self._model.training:
                self._look_for_randomness(x)
                self._report("plan", Sequential.name, {} if self._plan is None else self._plan.to_dict())
            with self._autocast():
                output = self._forward(x, batch)
                loss = self._loss(output, y)
            torch.autograd.backward(loss)
            if self._settings.clip is not None:
                nn.utils.clip_grad_norm_(self._parameters, self._settings.clip)
            self._optimizer.step()
        except (ConvoyError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise WorkerFailed(
                f"batch {batch} failed with {type(error).__name__}: {error}",
                action=f"batch {batch}",
                hint=hint_for(error),
            ) from error
        self._batch = batch + 1
        done = None
        if self._device.type == "cuda":
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()
        return SequentialResult(batch, loss.detach(), detach(output), y, done)

    def _forward(self, x: Any, batch: int) -> Any:
        graph = self._captured
        if graph is None or graph.signature is None or graph.output is None or not self._model.training:
            return call(self._model, x)
        values = graph.signature.bind(*arguments(x))
        with keyed(self._settings.seed, batch):
            return graph.output.rebuild(graph.program(*values.values()))

    def _begin(self) -> None:
        """Once, with the first batch: place the model, set the threads."""
        prepare_model(self._model, self._optimizer, self._device, self._settings.channels_last)
        if self._settings.threads is not None:
            self._threads_before = torch.get_num_threads()
            torch.set_num_threads(self._settings.threads)
        self._plan = SequentialPlan(strategy=Sequential.name, threads=torch.get_num_threads(), runs="module")

    def _look_for_randomness(self, x: Any) -> None:
        """Once, with the first batch in train mode: capture the model if its forward pass draws random numbers.

        A forward pass that leaves torch's generator alone tells that without the seconds that capturing takes; the
        buffers that it changed are put back.
        """
        self._looked = True
        devices = [] if self._device.type != "cuda" else [self._device]
        buffers = [(buffer, buffer.detach().clone()) for buffer in self._model.buffers()]
        with torch.random.fork_rng(devices), torch.no_grad(), self._autocast():
            before = _generators(self._device)
            call(self._model, x)
            draws = not torch.equal(before, _generators(self._device))
            for buffer, value in buffers:
                buffer.copy_(value)
        if not draws or self._plan is None:
            return
        try:
            graph = capture(self._model, *arguments(x))
        except ModelError as error:
            note = f"cannot be captured, so its random layers draw from torch's global generator: {error.message}"
            self._plan = replace(self._plan, notes=(note,))
            self._report("warning", "capture", {"message": f"{type(self._model).__name__} {note}"})
            return
        layers = tuple(m.name for m in graph.program.modules() if isinstance(m, Keyed))
        if layers:
            self._captured = graph
            self._plan = replace(self._plan, runs="captured program", random_layers=layers)

    def _report(self, kind: EventKind, name: str, data: Mapping[str, Any]) -> None:
        tell(self._sink, Event(kind, name, data=data))

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._settings.precision == "bfloat16":
            return torch.autocast(self._device.type, dtype=torch.bfloat16)
        return nullcontext()

    def begin_epoch(self, epoch: int, epochs: int, batches: int | None = None) -> None:
        """Epochs make no difference."""

    def end_epoch(self, *, validation_accuracy: float | None = None, validation_loss: float | None = None) -> None:
        """Epochs make no difference."""

    def drain(self) -> list[StepResult]:
        """Nothing is ever in flight."""
        return []

    def close(self) -> None:
        if self._threads_before is not None:
            torch.set_num_threads(self._threads_before)
            self._threads_before = None

    def state(self) -> Mapping[str, Any]:
        return {"batch": self._batch, "version": self._batch}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._batch = int(state["batch"])

    def plan(self) -> SequentialPlan | None:
        return self._plan

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _generators(device: torch.device) -> torch.Tensor:
    """The state of the generators that a model on ``device`` may draw from."""
    state = torch.get_rng_state()
    return torch.cat([state, torch.cuda.get_rng_state(device)]) if device.type == "cuda" else state
