"""What an engine is: it carries out actions when their reads are there, and says what happened."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn, Protocol, TypeAlias

from convoy.engines.program import Program, Store
from convoy.errors import ConvoyError, InternalError, RunError, WorkerFailed, hint_for
from convoy.events.event import Event, Sink
from convoy.schedule.action import Action
from convoy.schedule.schedule import Entry, Schedule
from convoy.schedule.walk import grid

Disturb: TypeAlias = Callable[[str, Action], None]
"""Called in a lane before each action; tests delay or break workers with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """``lanes``: lane name → intra-op threads of that worker. ``clock`` gives seconds. ``watchdog_seconds``: how long
    nothing may move while somebody waits. ``record``: whether actions become events."""

    lanes: Mapping[str, int]
    sink: Sink | None = None
    clock: Callable[[], float] = time.perf_counter
    watchdog_seconds: float = 300.0
    disturb: Disturb | None = None
    record: bool = True
    history: int = 240  # actions kept for the grid that an error shows
    versions: Mapping[str, int] = field(default_factory=dict)  # states that do not begin at 0


class Engine(Protocol):
    """Carries out actions. One per bound strategy; used from one thread (the driver). ``beside``: on processor
    cores, those of the driver's machine among them, while the driver does something else."""

    beside: bool

    def submit(self, entries: Iterable[Entry]) -> None:
        """Take up entries in program order. Entries of the driver lane are carried out at once, here."""
        ...

    def wait(self, action: Action) -> None:
        """Return when ``action`` is done. Raises WorkerFailed, Stalled; RunError when the engine was closed before."""
        ...

    def is_done(self, action: Action) -> bool: ...

    def settle(self) -> None:
        """Return when everything submitted is done."""
        ...

    def close(self) -> None:
        """Stop the workers, unfinished work included. May be called twice."""
        ...

    def abandon(self) -> None:
        """Let the workers stop and wait, for some seconds at most, for the actions under way: nobody will use the
        engine any more."""
        ...


def perform(program: Program, store: Store, lane: str, action: Action, options: EngineOptions) -> None:
    """Carry out one action, check the versions it really sees, and report it."""
    observed = {ref.name: store.version(ref.name) for ref in action.reads if ref.is_state}
    for ref in action.reads:
        if ref.is_state and observed[ref.name] != ref.version:
            raise InternalError(f"{action.label} should read {ref} and found version {observed[ref.name]}")
    start = options.clock()
    moved = program.run(action, store)
    end = options.clock()
    for ref in action.writes:
        if ref.is_state:
            store.advance(ref)
    if options.sink is not None and options.record:
        written = {ref.name: store.version(ref.name) for ref in action.writes if ref.is_state}
        data = {
            "kind": action.kind,
            "subject": action.subject,
            "part": action.part,
            "reads": observed,
            "writes": written,
            "bytes": moved,
        }
        options.sink(Event("action", action.label, start, end, lane, action.batch, data))


Failure: TypeAlias = "tuple[str, Action, BaseException]"
"""The lane that failed, what it was doing, and what was raised."""

_COLUMNS = 4  # cycles drawn before and after the one that failed

_WORDS = {
    "F": "forward",
    "B": "backward",
    "I": "input gradient",
    "G": "weight gradient",
    "L": "loss",
    "U": "update",
}


def raise_failure(failure: Failure, recent: Iterable[Entry], *, when: str = "in") -> NoReturn:
    """Raise what stopped the run: convoy's own errors as they are, with the place in a note, others as WorkerFailed
    with the schedule drawn.

    ``recent``: the last entries submitted, in program order. ``when``: "in" the failure's action, or "after" it.
    """
    lane, action, cause = failure
    subject = f"stage {action.subject}" if action.subject.isdecimal() else action.subject  # a stage or a node
    where = f"{when} the {_WORDS.get(action.kind, action.kind)} of batch {action.batch} at {subject}"
    if isinstance(cause, ConvoyError):
        note = f"{lane}, {where}"
        if note not in getattr(cause, "__notes__", ()):  # the driver may ask more than once
            cause.add_note(note)
        raise cause
    raise WorkerFailed(
        f"{lane} failed {where}: {type(cause).__name__}: {cause}",
        hint=hint_for(cause),
        action=action.label,
        grid=grid(Schedule(list(recent)), mark=action, tail=True, around=_COLUMNS),
    ) from cause


def closed() -> RunError:
    """What a caller gets who asks a closed engine for more."""
    return RunError("the workers were stopped before this was done", hint="drain before you close")
