"""Listens to actors: what they report, that one died, that one does not answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from convoy.engines.ray.lease import Leases

_LOOK_SECONDS = 0.25  # how often leases are looked at
ANSWER_SECONDS = 1.0
"""How long an actor with nothing to say lets the question stand."""


class Listener(Protocol):
    """What is done with what comes. Called from the watching thread; must not raise and not block for long."""

    def reported(self, name: str, report: Any) -> None:
        """``actor.report`` returned."""
        ...

    def died(self, name: str, reason: str) -> None:
        """The actor is gone. Called once."""
        ...

    def frozen(self, name: str, seconds: float) -> None:
        """Nothing was heard for ``seconds``, longer than the lease. Called once; it may be stopped, or cut off."""
        ...


class Watch:
    """One thread that keeps ``ask(name)``, a call of an actor's ``report`` method, open for every name."""

    def __init__(
        self, ray: Any, ask: Mapping[str, Callable[[], Any]], listener: Listener, lease_seconds: float
    ) -> None:
        self._ray, self._ask, self._listener = ray, dict(ask), listener
        self._leases = Leases(lease_seconds)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="convoy ray watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening. May be called from the watching thread."""
        self._stop.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=10)

    def abandon(self) -> None:
        """Stop listening, without waiting."""
        self._stop.set()

    def _watch(self) -> None:
        open_questions: dict[Any, str] = {}
        for name, ask in self._ask.items():
            open_questions[ask()] = name
            self._leases.heard(name)
        while not self._stop.is_set() and open_questions:
            ready, _ = self._ray.wait(list(open_questions), num_returns=1, timeout=_LOOK_SECONDS)
            for answered in ready:
                name = open_questions.pop(answered)
                if self._answered(name, answered):
                    open_questions[self._ask[name]()] = name
            for name in self._leases.look(time.monotonic()):
                silent = self._leases.silent(name)
                self._leases.drop(name)
                open_questions = {ref: n for ref, n in open_questions.items() if n != name}
                if not self._stop.is_set():
                    self._listener.frozen(name, silent)

    def _answered(self, name: str, answered: Any) -> bool:
        """Whether to ask again."""
        try:
            report = self._ray.get(answered)
        except Exception as error:
            self._leases.drop(name)
            if not self._stop.is_set():
                self._listener.died(name, reason_of(error))
            return False
        self._leases.heard(name)
        self._listener.reported(name, report)
        return not self._stop.is_set()


def reason_of(error: BaseException) -> str:
    """What Ray says of a death, in one line."""
    text = str(error)
    for line in text.splitlines():
        if "exit detail:" in line:
            return line.partition("exit detail:")[2].strip().split(". ")[0].rstrip(".").lower()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip(".")
