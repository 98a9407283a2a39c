"""What every strategy offers: it can be bound to a model, a loss and an optimizer, and then takes batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeAlias

from convoy.errors import OptionError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from convoy.events.event import Sink

Loss: TypeAlias = "Callable[[Any, Any], torch.Tensor]"
"""``loss(output, target)``, a scalar: the mean over the samples of the batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to run, whatever the strategy.

    ``seed`` keys every random layer. ``precision`` is "float32" or "bfloat16" (autocast). ``clip`` bounds the
    gradient norm per update (per stage where there are stages). ``threads`` are all intra-op threads that may be
    used (None: all cores). ``max_memory`` in bytes, per run. ``trace`` keeps every action as an event.
    ``watchdog_seconds``: how long nothing may move before the run is declared stalled. ``total_steps``: mini-batches
    of the whole run, for what depends on its length (where it is None, what ``begin_epoch``
    says). ``forecast``: measure before training even where nothing has to be chosen, so that the plan can predict.
    """

    seed: int = 0
    precision: str = "float32"
    device: str = "cpu"
    threads: int | None = None
    clip: float | None = None
    channels_last: bool = True
    max_memory: int | None = None
    trace: bool = False
    watchdog_seconds: float = 300.0
    total_steps: int | None = None
    forecast: bool = False


class StepResult(Protocol):
    """What became of one mini-batch. Reading ``loss`` or ``output`` waits until they are there; the rest is known."""

    @property
    def batch(self) -> int:
        """Running number of the mini-batch, from 0."""
        ...

    @property
    def ready(self) -> bool:
        """Whether reading would not wait."""
        ...

    @property
    def loss(self) -> torch.Tensor:
        """Scalar, detached."""
        ...

    @property
    def output(self) -> Any:
        """What the model returned, detached."""
        ...

    @property
    def target(self) -> Any:
        """The target as it was given."""
        ...


@dataclass(frozen=True, slots=True)
class Turn:
    """Stands in place of a mini-batch where the strategy orders the samples itself: go on until something is merged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnResult:
    """What a turn came to: a ``StepResult`` without outputs. ``loss`` is the mean over its ``samples``, ``correct`` how
    many of them were classified right (None where that has no meaning), ``steps`` what it counts for a scheduler that
    steps per mini-batch, ``measures`` further plain values for its event."""

    batch: int
    loss: torch.Tensor
    samples: int
    correct: int | None
    steps: int
    measures: Mapping[str, Any] = field(default_factory=dict)
    ready: bool = True
    output: Any = None
    target: Any = None


class Step(Protocol):
    """A bound strategy: call it with batches, then drain it. A context manager; leaving drains and frees threads.

    ``step(x, y)``: a mapping ``x`` becomes keyword arguments of the model, a tuple or list positional ones. Returns
    the result of an earlier batch (the same one where nothing is in flight), None while the pipeline fills.

    What would plan may have ``foresee(x, y)``: it plans on a batch long before it trains, keeps what it decided, and
    raises what it would raise then. ``Hybrid`` calls it before the first strategy trains.
    """

    def __call__(self, x: Any, y: Any) -> StepResult | None: ...

    def begin_epoch(self, epoch: int, epochs: int, batches: int | None = None) -> None:
        """Hear that epoch ``epoch`` (from 0) of ``epochs`` begins, or goes on after a resume; it has ``batches``
        mini-batches where that is known. The Trainer calls it; in an own loop it matters to ``Hybrid`` only."""
        ...

    def end_epoch(self, *, validation_accuracy: float | None = None, validation_loss: float | None = None) -> None:
        """Hear that the epoch is over, and what validation said where there was one."""
        ...

    def drain(self) -> list[StepResult]:
        """Finish what is in flight; afterwards the weights of the user's module are consistent."""
        ...

    def close(self) -> None:
        """Free threads without finishing what is in flight. May be called twice."""
        ...

    def state(self) -> Mapping[str, Any]:
        """Plain JSON-ready values that a resumed step needs (counters); only right after a drain. ``batch`` and
        ``version`` in it are the mini-batches trained and the updates made, by whatever strategy."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up a state, before the first batch. ``{"batch": n, "version": n}`` alone makes any step go on after
        ``n`` mini-batches that another strategy trained."""
        ...

    def plan(self) -> Any:
        """The plan, once the first batch was seen; else None."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None: ...


class Strategy(ABC):
    """The user's choice: a frozen dataclass whose fields are validated when it is made."""

    name: ClassVar[str]

    @property
    def needs_validation(self) -> bool:
        """Whether it makes decisions from validation, so that a run without one is refused."""
        return False

    @property
    def suspects(self) -> str | None:
        """What of the strategy to look at first when a run diverges; None where it changes nothing.

        A step that has ``suspects`` too knows better: what was chosen, and what is in force now.
        """
        return None

    @abstractmethod
    def bind(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        *,
        settings: Settings | None = None,
        sink: Sink | None = None,
    ) -> Step:
        """Tie the strategy to the user's own objects. Cheap: capture and planning wait for the first batch."""


class DataStep(Step, Protocol):
    """A step that orders the samples itself: it is called with a ``Turn`` and None until an epoch is through."""

    @property
    def source(self) -> Any:
        """Yields the turns of an epoch, by ``iterate(epoch, start_batch)``."""
        ...


class DataStrategy(Strategy):
    """A strategy that decides which samples are trained where, so that ``Trainer.fit`` alone can carry it out."""

    def bind(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        *,
        settings: Settings | None = None,
        sink: Sink | None = None,
    ) -> Step:
        """Raises OptionError: it cannot be handed batches."""
        raise OptionError(
            f"strategy {self.name} decides itself which node trains which samples, so it takes no batches one by one",
            hint=f"use Trainer(..., strategy={type(self).__name__}(...)).fit(loader)",
        )

    @abstractmethod
    def bind_data(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        data: Any,
        *,
        passes: int,
        scheduler: Any = None,
        per_step: bool = False,
        settings: Settings | None = None,
        sink: Sink | None = None,
    ) -> DataStep:
        """Tie it to the user's objects and to ``data``, a loader over samples that can be asked for by number, for
        ``passes`` epochs in all. ``scheduler`` is looked at, never stepped; ``per_step``: whether the caller steps it
        per mini-batch. Raises DataError where the data have no order that leases could replace."""
