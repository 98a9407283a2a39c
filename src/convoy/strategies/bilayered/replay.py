"""A real run once more, in one thread: the arrivals of its events in the order in which its server heard them.

Which push came when was timing, and is taken from the record; factors follow from data: computed again and compared.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from convoy.errors import InputError
from convoy.events.event import Event, Sink
from convoy.strategies.base import Loss, Settings, Turn
from convoy.strategies.bilayered.messages import Message, from_row
from convoy.strategies.bilayered.plan import BiLayeredPlan
from convoy.strategies.bilayered.step import BiLayeredStep
from convoy.strategies.bilayered.strategy import BiLayered
from convoy.strategies.record import Recorded, as_event


@dataclass(frozen=True, slots=True)
class Replayed:
    """``versions`` made; ``losses`` of each; ``first_difference``: the first version that came about otherwise than it
    was recorded (other pushes or factors), None where none did. ``plan``: what was decided before it began."""

    versions: int
    losses: tuple[float, ...]
    first_difference: int | None
    plan: BiLayeredPlan | None = None


def replay(
    model: nn.Module,
    loss: Loss,
    optimizer: Optimizer,
    strategy: BiLayered,
    data: Any,
    events: Iterable[Recorded],
    *,
    epochs: int,
    scheduler: Any = None,
    per_step: bool = False,
    settings: Settings | None = None,
    sink: Sink | None = None,
) -> Replayed:
    """Train ``model`` as the run of ``events`` did; from equal objects and data it ends with the same bits.

    ``events``: of the run, or the rows of its ``events.jsonl``. A ``scheduler`` is stepped as the Trainer does:
    ``per_step``, or after each epoch. Raises InputError where no arrivals were recorded.
    """
    messages, merges = _recorded(events)
    made: list[Any] = []

    def watch(event: Event) -> None:
        if (event.kind, event.name) == ("decision", "merge"):
            made.append(_essence(event))
        if sink is not None:
            sink(event)

    if not model.training:
        model.train()
    losses: list[float] = []
    epoch = 0
    step = BiLayeredStep(
        strategy,
        model,
        loss,
        optimizer,
        data,
        passes=epochs,
        scheduler=scheduler,
        per_step=per_step,
        settings=settings or Settings(),
        sink=watch,
        arrivals=messages,
    )
    with step:
        for _ in merges:
            result = step(Turn(), None)
            losses.append(float(result.loss))
            if scheduler is not None and per_step:
                for _ in range(result.steps):
                    _advance(scheduler)
            while step.merged() >= (epoch + 1) * step.samples:
                epoch += 1
                if scheduler is not None and not per_step:
                    _advance(scheduler)
    differing = (n for n, (a, b) in enumerate(zip(made, merges, strict=True), 1) if a != b)
    return Replayed(len(made), tuple(losses), next(differing, None), step.plan())


def _advance(scheduler: Any) -> None:
    with warnings.catch_warnings():  # the first updates may have been made by another node's optimizer
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*before.*optimizer.step.*")
        scheduler.step()


def _recorded(events: Iterable[Recorded]) -> tuple[list[Message], list[Any]]:
    """The messages, and what was merged. What a killed run did after its last checkpoint, and the resumed run did
    again, counts once."""
    kept: list[Event] = []
    for event in map(as_event, events):
        if (event.kind, event.name) == ("run", "begin"):
            place = int(event.data.get("resumed_from") or 0)
            end = next((n for n, e in enumerate(kept) if e.name == "merge" and e.batch == place), -1) if place else -1
            kept = kept[: end + 1]
        elif event.kind == "decision" and event.name in ("arrival", "merge"):
            kept.append(event)
    messages, merges = [], []
    for event in kept:
        if event.name == "merge":
            merges.append(_essence(event))
        else:
            row = {name: value for name, value in event.data.items() if name not in ("cause", "message")}
            messages.append(from_row({"kind": event.data["message"], **row}))
    if not merges:
        raise InputError("the events hold no arrivals at a parameter server", hint="pass those of a bilayered run")
    return messages, merges


def _essence(event: Event) -> Any:
    return event.data["version"], event.data["how"], [list(part) for part in event.data["parts"]]
