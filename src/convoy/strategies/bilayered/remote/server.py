"""The driver's side of the parameter server: it asks, holds a lease on the answer, and restarts a server that is gone.

A server that died or stands still comes back from its journal, at the last version that was acknowledged to the driver;
the messages since then are told once more. The state machine is deterministic, so it arrives where it was, to the
same bits, also where it had merged and journalled what it could not acknowledge any more.
"""

from __future__ import annotations

import os
import platform
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from convoy.engines.ray.failure import revive
from convoy.engines.ray.session import Session
from convoy.engines.ray.watch import reason_of
from convoy.errors import RESUME, RunError
from convoy.strategies.bilayered.layout import Flat, Layout
from convoy.strategies.bilayered.messages import Begin, Effect, Message, to_row
from convoy.strategies.bilayered.remote.actors import GROUPS, ServerActor
from convoy.strategies.bilayered.remote.clock import Clock
from convoy.strategies.bilayered.remote.rows import effect_of
from convoy.strategies.bilayered.server import Server
from convoy.strategies.bilayered.state import State

LOOK_SECONDS = 0.25
_ATTEMPTS = 5
_INSTALL_SECONDS = 180.0
_LEAST_SECONDS, _PATIENCE = 10.0, 10.0  # a lease on an answer: that many times the longest so far, and at least


class ParcelLost(Exception):
    """The weights of a push went down with the machine that held them."""


class _Gone(Exception):
    """The server died or stands still; the message says which."""


class RemoteServer(Server):
    """A ``Server`` whose work is done in an actor. ``told``: hears why a server had to be started again.

    ``state`` is what the server said last; weights stay in Ray's object store until somebody asks for them.
    """

    def __init__(
        self,
        session: Session,
        folder: Path,
        layout: Layout,
        state: State,
        weights: Flat,
        *,
        recipe: Any,
        clock: Clock,
        told: Callable[[str], None],
    ) -> None:
        super().__init__(state.rules, layout, {})
        self.state = state
        self._session, self._folder, self._recipe, self._clock, self._told = session, folder, recipe, clock, told
        self._references: dict[int, Any] = {state.version: session.ray.put(weights)}
        self._first = state
        self._mark: int | None = None  # the version that the journal has for sure
        self._needed = set(self._references)  # versions that leases of the state in the journal begin with
        self._tail: list[tuple[dict[str, Any], str, list[Any]]] = []  # messages since
        self._longest = 0.0
        self._actor: Any = None
        self.process: dict[str, Any] = {}
        self.restarts = 0

    def start(self) -> None:
        """Start the actor. Raises RunError where it does not come up."""
        try:
            self._start()
        except _Gone as gone:
            self._restart(str(gone))

    # --- Server --------------------------------------------------------------------------------------------------

    @property
    def weights(self) -> Flat:
        return self.version(self.state.version)

    def version(self, number: int) -> Flat:
        flat: Flat = self._session.ray.get(self._references[number])
        return flat

    @property
    def bases(self) -> dict[int, Flat]:
        """None: a run that is resumed leases everything again."""
        return {}

    def reference(self, number: int) -> Any:
        """To the weights of a version; nodes fetch them themselves."""
        return self._references[number]

    def handle(self, message: Message, parcel: Any = None) -> tuple[Effect, ...]:
        """As ``Server.handle``; ``parcel``: (form, reference). Raises ParcelLost, and RunError for a server that
        does not come back."""
        entry = (to_row(message), parcel[0] if parcel else "", [parcel[1]] if parcel else [])
        for attempt in range(_ATTEMPTS):
            try:
                header, reference = self._tell(entry)
                break
            except _Gone as gone:
                if attempt == _ATTEMPTS - 1:
                    raise _given_up(str(gone)) from None
                self._restart(str(gone))
        if "lost" in header:
            raise ParcelLost(header["lost"])
        if "failed" in header:
            raise revive(header["failed"])
        before, self.state = self.state.version, State.from_dict(header["state"])
        bases = {node.lease.base for node in self.state.nodes if node.lease is not None} | {self.state.version}
        if self.state.version != before:
            self._references[self.state.version] = reference
        if self.state.version != before or isinstance(message, Begin):
            self._mark, self._tail, self._needed = self.state.version, [], set(bases)
        else:
            self._tail.append(entry)
        kept = bases | self._needed
        self._references = {number: ref for number, ref in self._references.items() if number in kept}
        return tuple(map(effect_of, header["effects"]))

    def close(self) -> None:
        """End the actor."""
        actor, self._actor = self._actor, None
        if actor is not None:
            self._session.kill(actor)
            self._slay()

    # --- inside --------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._actor = self._session.spawn(ServerActor, str(self._folder), groups=GROUPS, here=True)
        install = self._actor.install.options(concurrency_group="work")
        versions = sorted(self._references.items())
        answer = self._wait(
            install.remote(self.layout.header(), self._first.to_dict(), self._mark, versions, self._recipe),
            _INSTALL_SECONDS,
        )
        if "failed" in answer:
            raise revive(answer["failed"])
        self.process = answer

    def _restart(self, why: str) -> None:
        for _ in range(_ATTEMPTS):
            self.close()
            self.restarts += 1
            self._told(why)
            try:
                self._start()
                for entry in self._tail:
                    self._tell(entry)
                return
            except _Gone as gone:
                why = str(gone)
        raise _given_up(why)

    def _tell(self, entry: tuple[dict[str, Any], str, list[Any]]) -> tuple[dict[str, Any], Any]:
        """The answer to a message, and the reference to the weights that came with it."""
        row, form, parcel = entry
        handle = self._actor.handle.options(concurrency_group="work", num_returns=2)
        answered, reference = handle.remote(row, form, parcel)
        began = self._clock.look()
        header = self._wait(answered, max(_LEAST_SECONDS, _PATIENCE * self._longest))
        self._longest = max(self._longest, self._clock.look() - began)
        return header, reference

    def _wait(self, answered: Any, limit: float) -> Any:
        ray, began = self._session.ray, self._clock.look()
        while True:
            ready, _ = ray.wait([answered], num_returns=1, timeout=LOOK_SECONDS)
            if ready:
                try:
                    return ray.get(answered)
                except ray.exceptions.RayError as error:
                    raise _Gone(f"died: {reason_of(error)}") from error
            silent = self._clock.look() - began
            if silent > limit:
                raise _Gone(f"gave no answer for {silent:.0f} s")

    def _slay(self) -> None:
        """A process that was stopped does not hear that it is to end."""
        slay(self.process)
        self.process = {}


def slay(process: Mapping[str, Any]) -> None:
    """End an actor's process (as ``about`` names it) where it is on this machine and still Ray's."""
    if process.get("machine") == platform.node():
        with suppress(OSError):
            if Path(f"/proc/{process['process']}/cmdline").read_bytes().startswith(b"ray::"):
                os.kill(process["process"], signal.SIGKILL)


def _given_up(why: str) -> RunError:
    return RunError(
        f"the parameter server {why}, and did not come back in {_ATTEMPTS} attempts",
        hint=RESUME,
    )
