"""What a strategy puts on an actor that is a lane of its schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from convoy.engines.program import Program
from convoy.schedule.action import Action, Ref


class Resident(Protocol):
    """The strategy's share of one lane. All values here are what ``message.pack`` takes: nested plain values and
    tensors."""

    @property
    def program(self) -> Program: ...

    def called(self, ref: Ref) -> str:
        """What a value that travels is called where a person reads: "the gradients from stage 2 to stage 1"."""
        ...

    def encode(self, ref: Ref, value: Any) -> Any:
        """A value of the store, ready to travel."""
        ...

    def decode(self, ref: Ref, value: Any) -> Any:
        """A value that travelled, as the program wants it in its store. Raises where it is not what it has to be."""
        ...

    def result(self, action: Action) -> Any:
        """What the driver gets of ``action``, which has just been carried out; None for nothing."""
        ...

    def hear(self, news: Any) -> None:
        """News of the driver, in order with the actions it submits."""
        ...

    def answer(self, topic: str, value: Any) -> Any:
        """A question of the driver, while nothing is in flight: the state, for example."""
        ...


class Recipe(Protocol):
    """Makes the resident of an actor. Reaches all actors once, by Ray's serialiser."""

    def build(self, lane: str, own: Mapping[str, Any]) -> Resident:
        """``own``: plain values that differ from actor to actor."""
        ...
