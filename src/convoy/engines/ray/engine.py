"""Lanes as Ray actors: the driver submits actions and hears of them; values go from actor to actor.

For every lane there is a ``Host`` with the strategy's ``Resident`` on it. Which lane reads a value is fixed by the
value's name (``routes``), so a value can leave as soon as it is made.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any, TypeAlias

import torch

from convoy.engines.engine import EngineOptions, closed, perform, raise_failure
from convoy.engines.program import Program, Store
from convoy.engines.ray.failure import revive
from convoy.engines.ray.host import GROUPS, Host, post
from convoy.engines.ray.message import pack, unpack
from convoy.engines.ray.resident import Recipe
from convoy.engines.ray.session import Session, by_value
from convoy.engines.ray.watch import ANSWER_SECONDS, Watch, reason_of
from convoy.errors import RESUME, ConvoyError, Diverged, MachineError, ModelError, Stalled, WorkerFailed
from convoy.events.event import Event
from convoy.schedule.action import Action, Ref
from convoy.schedule.schedule import DRIVER, Entry

_POLL_SECONDS = 0.5  # how often a waiting driver looks at the watchdog
_LEASE_SECONDS = 30.0  # silence after which an actor counts as frozen, if the watchdog is not stricter
_START_SECONDS = 300.0  # for processes that import PyTorch on a busy machine
_KNOWN_SECONDS = 1.0  # until the watch has heard of a death
_SAME_CLOCK_SECONDS = 0.05

Key: TypeAlias = "tuple[str, str, int, int]"
OnResult: TypeAlias = "Callable[[int, int, Any], None]"
"""Takes (batch, part, result) of what a resident's ``result`` returned. Called from the watching thread."""

MODULES = "what the modules of your model import has to be installed on the other machines too"


class ActorDied(Exception):
    """An actor's process ended, or does not answer."""


class RayEngine:
    """Implements ``Engine``. ``recipe`` goes to all actors once; ``own``: lane → plain values for its ``build``;
    ``encode`` makes the driver's own values ready to travel, ``modules`` travel by value."""

    beside = True

    def __init__(
        self,
        program: Program,
        store: Store,
        options: EngineOptions,
        *,
        session: Session,
        recipe: Recipe,
        own: Mapping[str, Mapping[str, Any]],
        modules: Iterable[ModuleType] = (),
        routes: Mapping[str, Sequence[str]],
        encode: Callable[[Ref, Any], Any],
        on_result: OnResult,
    ) -> None:
        self._program, self._store, self._options = program, store, options
        self._session, self._routes, self._encode, self._on_result = session, dict(routes), encode, on_result
        self._pending: dict[Key, tuple[str, Action]] = {}  # in the order of submission
        self._recent: deque[Entry] = deque(maxlen=options.history)
        self._changed = threading.Condition()
        self._moved_at = options.clock()
        self._failure: tuple[str, Action | None, Exception] | None = None
        self._stop = False
        self._news: list[Any] = []
        self._sequence = dict.fromkeys(options.lanes, 0)
        self._behind: dict[str, float] = {}  # lane → seconds to add to its clock
        self._named: dict[str, str] = {}  # lane → "worker 1 (process 123 on host)"
        self._watch: Watch | None = None
        session.need_cpus(sum(options.lanes.values()), f"{len(options.lanes)} workers")
        self._actors = {
            lane: session.spawn(
                Host, lane, threads, self._routes, dict(options.versions), options.record, cpus=threads, groups=GROUPS
            )
            for lane, threads in options.lanes.items()
        }
        try:
            self._start(recipe, own, set(modules))
        except BaseException:
            self.close()
            raise

    def _start(self, recipe: Recipe, own: Mapping[str, Mapping[str, Any]], modules: set[ModuleType]) -> None:
        calls = [actor.about.options(concurrency_group="health").remote() for actor in self._actors.values()]
        for (lane, actor), about in zip(self._actors.items(), self._await(calls, "start"), strict=True):
            self._named[lane] = f"{lane} (process {about['process']} on {about['machine']})"
            if about["torch"] != torch.__version__:
                raise MachineError(
                    f"{about['machine']} has torch {about['torch']} and this machine {torch.__version__}",
                    hint="install the same version on both: the numbers would differ",
                )
            self._behind[lane] = self._clock_offset(actor)
        control = {lane: _in(actor, "control") for lane, actor in self._actors.items()}
        self._await([call("meet", self._actors) for call in control.values()], "meet")
        try:
            with by_value(self._session.ray, modules):
                shared = self._session.ray.put((recipe, self._options.disturb))
        except Exception as error:
            raise ModelError(
                f"the model, loss and optimizer cannot be sent to other processes: {reason_of(error)}",
                hint="keep locks, files and connections out of them and of the modules that define them",
            ) from error
        calls = [call("install", shared, own[lane]) for lane, call in control.items()]
        for answer in self._await(calls, "take up their work", hint=MODULES):
            _raise_if_failed(answer)
        self._control = control
        self._values = {
            lane: actor.deliver.options(concurrency_group="values", num_returns=0)
            for lane, actor in self._actors.items()
        }
        lease = min(_LEASE_SECONDS, self._options.watchdog_seconds)
        ask = {lane: _reporting(actor, min(ANSWER_SECONDS, lease / 3)) for lane, actor in self._actors.items()}
        self._watch = Watch(self._session.ray, ask, self, lease)

    def _await(self, calls: Sequence[Any], what: str, hint: str | None = None) -> list[Any]:
        """What the actors return. Raises MachineError for those that do not in time, WorkerFailed for dead ones."""
        limit = max(_START_SECONDS, self._options.watchdog_seconds)
        try:
            found: list[Any] = self._session.ray.get(list(calls), timeout=limit)
        except self._session.ray.exceptions.GetTimeoutError:
            raise MachineError(
                f"the actors did not {what} within {limit:.0f} s", hint="is the machine busy, or the cluster full?"
            ) from None
        except self._session.ray.exceptions.RayError as error:
            with self._changed:  # the watch may know more
                self._changed.wait_for(lambda: self._failure is not None, timeout=_KNOWN_SECONDS)
                self._check()
            raise WorkerFailed(f"an actor failed to {what}: {reason_of(error)}", hint=hint) from error
        return found

    def _clock_offset(self, actor: Any) -> float:
        """Seconds to add to the actor's clock: 0 on the same machine, else by the quickest of a few questions."""
        found = []
        for _ in range(3):
            before = self._options.clock()
            there = self._session.ray.get(actor.about.options(concurrency_group="health").remote())["clock"]
            after = self._options.clock()
            found.append((after - before, (before + after) / 2 - there))
        offset = min(found)[1]
        return 0.0 if abs(offset) < _SAME_CLOCK_SECONDS else offset

    # --- Engine ----------------------------------------------------------------------------------------------

    def announce(self, news: Any) -> None:
        """Let all residents ``hear`` the news before the actions of the next ``submit``."""
        self._news.append(news)

    def submit(self, entries: Iterable[Entry]) -> None:
        entries = list(entries)
        with self._changed:
            self._check()
            if self._stop:
                raise closed()
            if not self._pending:  # the watchdog does not count the time in which there was nothing to do
                self._moved_at = self._options.clock()
            self._recent.extend(entries)
            self._pending.update((_key(action), (lane, action)) for lane, action in entries if lane != DRIVER)
        news, self._news = self._news, []
        for lane, call in self._control.items():
            texts = [str(action) for own, action in entries if own == lane]
            if texts or news:
                message = pack({"news": news, "actions": texts}, "what the batch brings")
                call("submit", self._sequence[lane], message.header, message.array)
                self._sequence[lane] += 1
        for lane, action in entries:
            if lane == DRIVER:
                perform(self._program, self._store, lane, action, self._options)

                for ref in action.writes:
                    message = pack(self._encode(ref, self._store.take(ref)), "the batch")
                    post(message, ref, [self._values[reader] for reader in self._routes[ref.name]], finite=False)

    def wait(self, action: Action) -> None:
        key = _key(action)
        with self._changed:
            while key in self._pending:  # what is done stays readable, whatever failed later
                self._wait_a_little()

    def is_done(self, action: Action) -> bool:
        return _key(action) not in self._pending

    def settle(self) -> None:
        with self._changed:
            while self._pending:
                self._wait_a_little()
            self._check()

    def abandon(self) -> None:
        with self._changed:
            self._stop = True
            self._changed.notify_all()
        if self._watch is not None:
            self._watch.abandon()

    def close(self) -> None:
        self.abandon()
        if self._watch is not None:
            self._watch.close()
        for actor in self._actors.values():
            self._session.kill(actor)

    def _wait_a_little(self) -> None:
        self._check()
        if self._stop:
            raise closed()
        self._changed.wait(timeout=_POLL_SECONDS)
        self._check()
        silent = self._options.clock() - self._moved_at
        if silent > self._options.watchdog_seconds:
            first = {lane: action for lane, action in reversed(self._pending.values())}
            busy = ", ".join(f"{lane} has yet to do {first[lane].label}" for lane in sorted(first))
            raise Stalled(
                f"nothing moved for {silent:.0f} s: {busy}",
                hint="a worker may be stuck in native code; raise watchdog_seconds if a step takes this long",
            )

    def _check(self) -> None:
        if self._failure is None:
            return
        lane, action, cause = self._failure
        try:
            if action is None:
                done = (a for own, a in reversed(self._recent) if own == lane and _key(a) not in self._pending)
                last = next(done, None)
                if last is not None:
                    raise_failure((lane, last, cause), self._recent, when="after")
                if isinstance(cause, ConvoyError):
                    raise cause
                raise WorkerFailed(f"{lane} failed before the first batch: {type(cause).__name__}: {cause}") from cause
            raise_failure((lane, action, cause), self._recent)
        except WorkerFailed as error:
            error.hint = error.hint or RESUME
            raise

    # --- questions while nothing is in flight -----------------------------------------------------------------

    def ask(self, topic: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Ask residents, lane → value, all at once and while nothing is in flight. Returns lane → answer."""
        calls = []
        for lane, value in values.items():
            message = pack(value, f"{topic} of {lane}")
            calls.append(self._control[lane]("ask", topic, message.header, message.array))
        found: dict[str, Any] = {}
        for lane, answer in zip(values, self._await(calls, f"answer ({topic})", hint=RESUME), strict=True):
            _raise_if_failed(answer)
            found[lane] = unpack(answer[0], answer[1], f"{topic} of {lane}")
        return found

    # --- what the watch hears; in its thread ------------------------------------------------------------------

    def reported(self, name: str, report: Any) -> None:
        """Implements ``Listener``."""
        try:
            self._take_report(name, unpack(report[0], report[1], f"the report of {name}"))
        except Exception as error:
            self._fail(name, None, error)

    def _take_report(self, lane: str, news: Any) -> None:
        for batch, part, result in news["results"]:
            self._on_result(batch, part, result)
        later = self._behind[lane]
        for name, start, end, batch, data in news["events"]:
            if self._options.sink is not None:
                self._options.sink(Event("action", name, start + later, end + later, lane, batch, data))
        with self._changed:
            for kind, subject, batch, part in news["done"]:
                self._pending.pop((kind, subject, batch, part), None)
                self._moved_at = self._options.clock()
            self._changed.notify_all()
        for failure in news["failed"]:
            cause = revive(failure)
            if isinstance(cause, Diverged):
                self._place(cause, failure["action"])
            self._fail(lane, self._failed_action(lane, failure["action"]), cause)

    def died(self, name: str, reason: str) -> None:
        """Implements ``Listener``."""
        self._fail(name, self._next_of(name), ActorDied(f"{self._named[name]} died: {reason}"))

    def frozen(self, name: str, seconds: float) -> None:
        """Implements ``Listener``: an actor that was stopped would go on later, with nobody to listen."""
        action = self._next_of(name)
        cause = ActorDied(f"{self._named[name]} has not answered for {seconds:.0f} s and was ended")
        self._session.kill(self._actors[name])
        self._fail(name, action, cause)

    def _failed_action(self, lane: str, text: str) -> Action | None:
        try:
            return Action.parse(text)
        except ConvoyError:  # a value could not be sent or taken in
            return self._next_of(lane, text)

    def _place(self, cause: Diverged, value: str) -> None:
        """Say the mini-batch of ``value``, a reference as text: the actor knows a running number of parts only."""
        with self._changed:
            made = (action for _, action in reversed(self._recent) if value in map(str, action.writes))
            action = next(made, None)
        if action is not None:
            cause.batch = action.batch
            cause.message += f" in batch {action.batch}"

    def _next_of(self, lane: str, value: str = "") -> Action | None:
        """What the lane has to do next, or what of it reads ``value``, a reference as text."""
        with self._changed:
            mine = [action for own, action in self._pending.values() if own == lane]
        reads = (action for action in mine if value in map(str, action.reads))
        return next(reads, mine[0] if mine else None)

    def _fail(self, lane: str, action: Action | None, cause: Exception) -> None:
        with self._changed:
            if self._failure is None and not self._stop:
                self._failure = (lane, action, cause)
            self._changed.notify_all()


def _key(action: Action) -> Key:
    return action.kind, action.subject, action.batch, action.part


def _in(actor: Any, group: str) -> Callable[..., Any]:
    """``call(method, *args)`` in one of the actor's concurrency groups."""

    def call(method: str, *args: Any) -> Any:
        return getattr(actor, method).options(concurrency_group=group).remote(*args)

    return call


def _reporting(actor: Any, seconds: float) -> Callable[[], Any]:
    report = actor.report.options(concurrency_group="health")
    return lambda: report.remote(seconds)


def _raise_if_failed(answer: Any) -> None:
    if isinstance(answer, dict) and "failed" in answer:
        raise revive(answer["failed"])
