"""The actor's side: one lane of a schedule in a process of its own.

The driver submits actions in program order; values come from other actors and go to them directly; the driver hears of
what is done by asking ``report`` again and again. Calls: ``submit``, ``ask`` and ``install`` one at a time in the
group "control", ``deliver`` in "values", ``report`` and ``about`` in "health", so that a busy lane answers.
"""

from __future__ import annotations

import os
import platform
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from convoy.engines.engine import Disturb, EngineOptions
from convoy.engines.program import Store
from convoy.engines.ray.failure import describe
from convoy.engines.ray.message import Message, finite, pack, unpack
from convoy.engines.ray.resident import Recipe, Resident
from convoy.engines.threads import ThreadsEngine
from convoy.errors import Diverged, InternalError
from convoy.events.event import Event
from convoy.schedule.action import Action, Ref

GROUPS = {"control": 1, "values": 2, "health": 1}
"""Concurrency groups of the actor, with their threads."""
_LINGER_SECONDS = 0.005  # what happens just after belongs to the same report: a backward and its update
_INLINE_BYTES = 65536  # larger arrays go through the object store


class HostEngine(ThreadsEngine):
    """One lane as a thread; values for other lanes leave through the host, those of others come in by ``deliver``."""

    def __init__(self, host: Host, options: EngineOptions) -> None:
        self._host = host
        super().__init__(host.resident.program, host.store, options)

    def deliver(self, ref: Ref, value: Any) -> None:
        """A value that another lane wrote."""
        with self._lock:
            self._store.put(ref, value)
            self._board.provide(ref)
            self._wake()

    def _carry_out(self, lane: str, action: Action) -> None:
        super()._carry_out(lane, action)
        self._host.carried_out(action)

    def _finish(self, lane: str, action: Action) -> None:
        # What was sent away is no concern of this lane's scoreboard.
        kept = tuple(ref for ref in action.writes if ref.name not in self._host.routes)
        super()._finish(lane, action if len(kept) == len(action.writes) else replace(action, writes=kept))

    def _wake(self) -> None:
        super()._wake()
        if self._failure is not None:
            _, action, cause = self._failure
            self._host.failed(str(action), cause)


class Host:
    """Becomes an actor by ``Session.spawn``. ``routes``: name of a value → lanes that read it; ``threads`` intra-op."""

    def __init__(
        self, lane: str, threads: int, routes: Mapping[str, Sequence[str]], versions: Mapping[str, int], record: bool
    ) -> None:
        self.lane = lane
        self.routes = dict(routes)
        self.store = Store()
        self.resident: Resident
        self._engine: HostEngine | None = None
        self._options = EngineOptions(lanes={lane: threads}, sink=self._saw, versions=versions, record=record)
        self._peers: dict[str, Any] = {}
        self._sequence = 0
        self._early: dict[int, tuple[Any, Any]] = {}
        self._changed = threading.Condition()
        self._news = _nothing()
        self._outgoing: queue.SimpleQueue[tuple[Ref, Any] | None] = queue.SimpleQueue()
        self._sender = threading.Thread(target=self._send, name=f"convoy send of {lane}", daemon=True)

    # --- group "control" -------------------------------------------------------------------------------------

    def meet(self, peers: Mapping[str, Any]) -> None:
        """The actors of the other lanes."""
        self._peers = {
            lane: actor.deliver.options(concurrency_group="values", num_returns=0) for lane, actor in peers.items()
        }

    def install(self, shared: tuple[Recipe, Disturb | None], own: Mapping[str, Any]) -> dict[str, Any]:
        """Build the resident. Returns ``{}``, or a failure as plain values."""
        recipe, disturb = shared
        try:
            torch.set_num_threads(self._options.lanes[self.lane])
            self.resident = recipe.build(self.lane, own)
            self._engine = HostEngine(self, replace(self._options, disturb=disturb))
        except Exception as error:
            return {"failed": describe(error)}
        self._sender.start()
        return {}

    def submit(self, sequence: int, header: Any, array: Any) -> None:
        """``{"news": ..., "actions": [text]}``: what the strategy says first, then actions in program order.

        Taken up in the order of ``sequence``, each once, whatever the order of the calls.
        """
        if sequence >= self._sequence:
            self._early.setdefault(sequence, (header, array))
        while self._sequence in self._early:
            header, array = self._early.pop(self._sequence)
            self._sequence += 1
            try:
                self._take_up(unpack(header, array, f"a submission to {self.lane}"))
            except Exception as error:
                self.failed("", error)

    def _take_up(self, submission: Any) -> None:
        for item in submission["news"]:
            self.resident.hear(item)
        self._running.submit([(self.lane, Action.parse(text)) for text in submission["actions"]])

    def ask(self, topic: str, header: Any, array: Any) -> tuple[Any, Any] | dict[str, Any]:
        """The resident's answer as (header, array), or a failure as plain values."""
        try:
            answer = pack(
                self.resident.answer(topic, unpack(header, array, f"a question to {self.lane}")),
                f"the answer of {self.lane}",
            )
        except Exception as error:
            return {"failed": describe(error)}
        return answer.header, answer.array

    def end(self) -> None:
        """Stop the threads, without finishing anything."""
        if self._engine is not None:
            self._engine.close()
            self._outgoing.put(None)
            self._sender.join(timeout=10)

    # --- group "values" --------------------------------------------------------------------------------------

    def deliver(self, name: str, header: Any, array: Any) -> None:
        """The value ``name`` (a reference as text), of another lane or of the driver."""
        try:
            ref = Ref.parse(name)
            if self.lane not in self.routes.get(ref.name, ()):
                raise InternalError(f"{ref} was delivered to {self.lane}, which does not read it")
            what = self.resident.called(ref)
            value = unpack(header, array, f"a message with {what}")
            if header.get("finite") and not finite(value):
                raise Diverged(f"{what} are not finite")
            self._running.deliver(ref, self.resident.decode(ref, value))
        except Exception as error:
            self.failed(name, error)

    # --- group "health" --------------------------------------------------------------------------------------

    def about(self) -> dict[str, Any]:
        """Who this is, and the time here."""
        return {
            "process": os.getpid(),
            "machine": platform.node(),
            "torch": torch.__version__,
            "clock": time.perf_counter(),
        }

    def report(self, seconds: float) -> tuple[Any, Any]:
        """What happened since the last report, as (header, array), as soon as there is something; after ``seconds``
        also nothing. ``{"done": [[kind, subject, batch, part]], "events": [[name, start, end, batch, data]],
        "results": [[batch, part, result]], "failed": [{"action", "kind", "message", "hint", "trace"}]}``."""
        with self._changed:
            if self._changed.wait_for(lambda: any(self._news.values()), timeout=seconds):
                self._changed.wait_for(lambda: bool(self._news["failed"]), timeout=_LINGER_SECONDS)
            news, self._news = self._news, _nothing()
        message = pack(news, f"the report of {self.lane}")
        return message.header, message.array

    # --- inside ----------------------------------------------------------------------------------------------

    @property
    def _running(self) -> HostEngine:
        if self._engine is None:
            raise InternalError(f"{self.lane} was used before it was installed")
        return self._engine

    def carried_out(self, action: Action) -> None:
        """Called by the lane's thread after each action."""
        for ref in action.writes:
            if ref.name in self.routes:
                self._outgoing.put((ref, self.store.take(ref)))
        result = self.resident.result(action)
        with self._changed:
            self._news["done"].append([action.kind, action.subject, action.batch, action.part])
            if result is not None:
                self._news["results"].append([action.batch, action.part, result])
            self._changed.notify_all()

    def failed(self, action: str, cause: BaseException) -> None:
        """Tell the driver; what it does about it is its affair. ``action``: an action or a reference as text."""
        with self._changed:
            self._news["failed"].append({"action": action, **describe(cause)})
            self._changed.notify_all()

    def _saw(self, event: Event) -> None:
        with self._changed:
            self._news["events"].append([event.name, event.start, event.end, event.batch, event.data])

    def _send(self) -> None:
        """Beside the lane's thread: a hand-over costs the lane no time of its own."""
        while (item := self._outgoing.get()) is not None:
            ref, value = item
            try:
                message = pack(self.resident.encode(ref, value), f"a message with {self.resident.called(ref)}")
                post(message, ref, [self._peers[lane] for lane in self.routes[ref.name]], finite=True)
            except Exception as error:
                self.failed(str(ref), error)
            del item, value


def post(message: Message, ref: Ref, delivers: Sequence[Any], *, finite: bool) -> None:
    """Send the value ``ref`` to every ``deliver`` method; a large array is put into the object store once.
    ``finite``: whether the receiver refuses numbers that are not."""
    array: Any = message.array
    if array.nbytes > _INLINE_BYTES and len(delivers) > 1:
        import ray

        array = ray.put(array)
    for deliver in delivers:
        deliver.remote(str(ref), {**message.header, "finite": finite}, array)


def _nothing() -> dict[str, list[Any]]:
    return {"done": [], "events": [], "results": [], "failed": []}
