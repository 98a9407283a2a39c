"""What the oracle takes from a run's events: decisions, cuts, and numbers to compare with. Plain Python."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from convoy.errors import InputError
from convoy.events.event import Event
from convoy.schedule.decision import Decision

Recorded: TypeAlias = "Event | Decision | Mapping[str, Any]"
"""An event, a decision, or a row of a run's ``events.jsonl``."""


@dataclass(frozen=True, slots=True)
class Validation:
    """What validation said after ``batch`` mini-batches of the run."""

    batch: int
    accuracy: float | None
    loss: float | None


@dataclass(frozen=True, slots=True)
class Record:
    """``drains``: the mini-batches before which the pipeline was drained. ``recuts``: those before which it was cut
    anew, and where. ``switch``: the one before which a hybrid went over. ``plans``: the pipelines' plans before and
    after the switch. ``losses`` by mini-batch. ``computed``: decisions made from the data of a mini-batch, by it and
    their name. ``groups``: of output channels, of a concurrent run."""

    drains: frozenset[int] = frozenset()
    recuts: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    switch: Decision | None = None
    plans: tuple[tuple[Mapping[str, Any], ...], tuple[Mapping[str, Any], ...]] = ((), ())
    losses: Mapping[int, float] = field(default_factory=dict)
    validations: tuple[Validation, ...] = ()
    computed: Mapping[tuple[int, str], Mapping[str, Any]] = field(default_factory=dict)
    groups: int | None = None

    @classmethod
    def of(cls, recorded: Iterable[Recorded]) -> Record:
        """Raises InputError for what is no event. What a killed run did after its last checkpoint, and the resumed run
        did again, counts once."""
        kept: list[tuple[int, Event]] = []  # each with the mini-batch at which it fell
        place = 0
        for event in map(as_event, recorded):
            if (event.kind, event.name) == ("run", "begin"):
                place = int(event.data.get("resumed_from") or 0)
                kept = [(at, e) for at, e in kept if at < place or (at == place and e.name in ("drain", "recut"))]
            place = max(place, event.batch)
            kept.append((place if event.kind == "plan" else event.batch, event))
        return cls._sorted([event for _, event in kept])

    @classmethod
    def _sorted(cls, events: Iterable[Event]) -> Record:
        drains: set[int] = set()
        recuts: dict[int, tuple[str, ...]] = {}
        switch: Decision | None = None
        plans: tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]] = ([], [])
        losses: dict[int, float] = {}
        validations: list[Validation] = []
        computed: dict[tuple[int, str], Mapping[str, Any]] = {}
        groups: int | None = None
        for event in events:
            match event.kind, event.name:
                case "decision", "drain":
                    drains.add(event.batch)
                case "decision", "recut":
                    drains.add(event.batch)
                    recuts[event.batch] = tuple(event.data["cuts"])
                case "decision", "switch":
                    switch = Decision("switch", event.batch, event.data.get("cause", "user"), event.data)
                case "plan", "concurrent":
                    groups = int(event.data["groups"])
                case "plan", "pipelined":
                    plans[switch is not None].append(event.data)
                case "decision", name if event.data.get("cause") == "data":
                    computed[event.batch, name] = event.data
                case "step", _:
                    losses[event.batch] = float(event.data["loss"])
                case "epoch", _:
                    data = event.data
                    validations.append(
                        Validation(event.batch + 1, data.get("validation_accuracy"), data.get("validation_loss"))
                    )
        return cls(
            drains=frozenset(drains),
            recuts=recuts,
            switch=switch,
            plans=(tuple(plans[0]), tuple(plans[1])),
            losses=losses,
            validations=tuple(validations),
            computed=computed,
            groups=groups,
        )


def as_event(item: Recorded) -> Event:
    """Raises InputError for what is no event."""
    if isinstance(item, Event):
        return item
    if isinstance(item, Decision):
        return Event("decision", item.name, batch=item.batch, data={"cause": item.cause, **item.data})
    if isinstance(item, Mapping) and "kind" in item and "name" in item:
        return Event(item["kind"], item["name"], batch=item.get("batch", -1), data=item.get("data", {}))
    raise InputError(
        f"{item!r} is neither an event nor a decision",
        hint="pass Event or Decision objects, or the rows of a run's events.jsonl",
    )
