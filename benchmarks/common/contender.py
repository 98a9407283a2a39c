"""Contenders: each lives in processes of its own, is told "do n steps" over a pipe, and is stopped otherwise: threads
that wait actively, or tidy up, do not take the others' time.

A contender is a factory of a ``Session`` and a plain dictionary of options. The coordinator prepares all of them one
after the other, then asks them in turns, so that whatever else the machine does falls on all alike. One that fails is
reported and left out; the others go on. All processes end with the coordinator, however it ends.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any, Protocol, TypeAlias

_SPAWN = multiprocessing.get_context("spawn")
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


class Session(Protocol):
    """What runs inside a contender's process."""

    def info(self) -> Mapping[str, Any]:
        """Plain values about how it was set up (plan, cut, threads)."""
        ...

    def measure(self, steps: int) -> Mapping[str, Any]:
        """Do ``steps`` steps; returns plain values, ``seconds`` (per step) among them."""
        ...


Factory: TypeAlias = Callable[[Mapping[str, Any]], Session]
"""Makes a session of the options; a function at the top of a module. ``rank``, ``size`` and ``port`` are added."""


class Failed(Exception):
    """A contender could not go on; the text is what it said last."""


class Contender:
    """``processes`` copies of a session that work together (one unless it is a group)."""

    def __init__(
        self,
        name: str,
        factory: Factory,
        options: Mapping[str, Any],
        processes: int = 1,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """``environment``: variables that the processes find at their start, when libraries read them."""
        self.name, self.processes = name, processes
        self._environment = dict(environment or {})
        self._factory, self._options = factory, dict(options)
        self._workers: list[tuple[Any, Connection]] = []
        self.error: str | None = None
        self.info: Mapping[str, Any] = {}

    def start(self, timeout_seconds: float = 900.0) -> None:
        """Build the session and warm it up. Sets ``error`` instead of raising."""
        port = free_port()
        for rank in range(self.processes):
            ours, theirs = _SPAWN.Pipe()
            options = self._options | {"rank": rank, "size": self.processes, "port": port}
            worker = _SPAWN.Process(target=_serve, args=(theirs, self._factory, options), daemon=True)
            before = {name: os.environ.get(name) for name in self._environment}
            os.environ.update(self._environment)
            worker.start()
            for variable, value in before.items():
                if value is None:
                    del os.environ[variable]
                else:
                    os.environ[variable] = value
            theirs.close()
            self._workers.append((worker, ours))
        answers = self._collect(timeout_seconds)
        self._signal(signal.SIGSTOP)
        self.info = answers[0] if answers else {}

    def measure(self, steps: int, timeout_seconds: float = 900.0) -> dict[str, Any] | None:
        """One turn: what the first process says, with the longest ``seconds`` of all. None after a failure."""
        if self.error is not None:
            return None
        self._signal(signal.SIGCONT)
        for _, pipe in self._workers:
            try:
                pipe.send(steps)
            except OSError as cause:
                self._fail(f"process is gone: {cause}")
                return None
        answers = self._collect(timeout_seconds)
        self._signal(signal.SIGSTOP)
        if not answers:
            return None
        return {**answers[0], "seconds": max(a["seconds"] for a in answers)}

    def _signal(self, number: int) -> None:
        for worker, _ in self._workers:
            if worker.pid is not None and worker.is_alive():
                os.kill(worker.pid, number)

    def _collect(self, timeout_seconds: float) -> list[dict[str, Any]]:
        """One answer of each process; empty after a failure."""
        deadline = time.monotonic() + timeout_seconds
        waiting = {pipe: rank for rank, (_, pipe) in enumerate(self._workers)}
        answers: dict[int, dict[str, Any]] = {}
        while waiting:
            ready = multiprocessing.connection.wait(list(waiting), max(0.0, deadline - time.monotonic()))
            if not ready:
                self._fail(f"no answer within {timeout_seconds:.0f} s")
                return []
            for pipe in ready:
                assert isinstance(pipe, Connection)
                rank = waiting.pop(pipe)
                try:
                    kind, value = pipe.recv()
                except (EOFError, OSError):
                    self._fail(f"process {rank} died")
                    return []
                if kind == "error":
                    self._fail(value)
                    return []
                answers[rank] = value
        return [answers[rank] for rank in sorted(answers)]

    def _fail(self, text: str) -> None:
        self.error = text
        print(f"{self.name}: {text}", file=sys.stderr)
        self.stop()

    def stop(self) -> None:
        for worker, pipe in self._workers:
            pipe.close()
            worker.kill()
        for worker, _ in self._workers:
            worker.join()
        self._workers.clear()


class BusyCore:
    """Another program that keeps one core busy with plain arithmetic, while it is switched on."""

    def __init__(self) -> None:
        self._pipe, theirs = _SPAWN.Pipe()
        self._worker = _SPAWN.Process(target=_burn, args=(theirs,), daemon=True)
        self._worker.start()
        theirs.close()

    def switch(self, on: bool) -> None:
        self._pipe.send(on)
        self._pipe.recv()

    def stop(self) -> None:
        self._pipe.close()
        self._worker.kill()
        self._worker.join()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end_with_parent() -> None:
    """Ctrl-C is the coordinator's affair; its death is ours, even in the middle of a step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        if os.getppid() == 1:  # it died before we asked
            os._exit(1)


def _serve(pipe: Connection, factory: Factory, options: Mapping[str, Any]) -> None:
    _end_with_parent()
    try:
        session = factory(options)
        pipe.send(("info", dict(session.info())))
        while True:
            pipe.send(("answer", dict(session.measure(pipe.recv()))))
    except EOFError:
        return
    except BaseException as cause:
        if os.environ.get("BENCHMARK_DEBUG"):
            traceback.print_exc()
        pipe.send(("error", _told(cause)))


def _told(error: BaseException) -> str:
    """The error in one line, and what was at the bottom of it."""
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    words = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return words if root is error else f"{words}; because of {type(root).__name__}: {root}"[:600]


def _burn(pipe: Connection) -> None:
    _end_with_parent()
    value, on = 1.0, False
    try:
        while True:
            if not on or pipe.poll():
                on = pipe.recv()
                pipe.send(on)
                continue
            for _ in range(20_000):
                value = value * 1.0000001 + 0.5
    except EOFError:
        return
