"""As much of Ray as the plumbing uses, with threads for actors: values are copied as on their way to a process."""

from __future__ import annotations

import contextlib
import copy
import pickle
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import SimpleNamespace
from typing import Any

import numpy as np


class RayError(Exception):
    pass


class GetTimeoutError(RayError):
    pass


class Reference:
    def __init__(self, future: Future[Any]) -> None:
        self.future = future


class Method:
    def __init__(self, actor: Actor, name: str, group: str = "") -> None:
        self.actor, self.name, self.group = actor, name, group

    def options(self, concurrency_group: str = "", num_returns: int = 1) -> Method:
        return Method(self.actor, self.name, concurrency_group)

    def remote(self, *args: Any) -> Reference:
        return self.actor.call(self.group, self.name, args)


class Actor:
    """``delay``: called before each call is carried out, for tests that reorder or lose them."""

    def __init__(self, ray: FakeRay, kind: type, args: Any, groups: dict[str, int]) -> None:
        self._ray = ray
        self.instance = kind(*args)
        self.dead = False
        self._open: set[Future[Any]] = set()
        self._lock = threading.Lock()
        self._pools = {name: ThreadPoolExecutor(n, thread_name_prefix="fake actor") for name, n in groups.items()}

    def __getattr__(self, name: str) -> Method:
        if name.startswith("__"):
            raise AttributeError(name)
        return Method(self, name)

    def call(self, group: str, name: str, args: Any) -> Reference:
        future: Future[Any] = Future()
        with self._lock:
            if self.dead:
                future.set_exception(RayError("The actor died.\nexit detail: it was dead already. Etc."))
                return Reference(future)
            self._open.add(future)
        arrived = [self._arrive(a) for a in args]
        self._pools[group].submit(self._carry_out, future, name, arrived)
        return Reference(future)

    def _arrive(self, value: Any) -> Any:
        if isinstance(value, Reference):
            return value.future.result()
        if isinstance(value, dict) and any(isinstance(v, Actor) for v in value.values()):
            return value
        return _travel(value)

    def _carry_out(self, future: Future[Any], name: str, args: Any) -> None:
        self._ray.disturb(self, name)
        try:
            result, error = _travel(getattr(self.instance, name)(*args)), None
        except Exception as raised:
            result, error = None, raised
        with self._lock, contextlib.suppress(Exception):
            self._open.discard(future)
            if not self.dead:
                future.set_exception(error) if error else future.set_result(result)

    def die(self) -> None:
        with self._lock:
            if self.dead:
                return
            self.dead = True
            for future in self._open:
                future.set_exception(RayError("The actor died.\nThe reason. exit detail: End of file. Etc."))
        if hasattr(self.instance, "end"):
            self.instance.end()
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)


def _travel(value: Any) -> Any:
    """What comes out at the other end; arrays arrive read-only."""
    if isinstance(value, np.ndarray):
        came = value.copy()
        came.flags.writeable = False
        return came
    if isinstance(value, tuple):
        return tuple(map(_travel, value))
    return pickle.loads(pickle.dumps(value))


class FakeRay:
    exceptions = SimpleNamespace(RayError=RayError, GetTimeoutError=GetTimeoutError)
    cloudpickle = SimpleNamespace(register_pickle_by_value=lambda m: None, unregister_pickle_by_value=lambda m: None)

    def __init__(self, cores: float = 64) -> None:
        self.actors: list[Actor] = []
        self.cores = cores
        self.disturb: Any = lambda actor, name: None

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[Any]:
        return [{}]

    def available_resources(self) -> dict[str, float]:
        return {"CPU": self.cores}

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": self.cores}

    def remote(self, **options: Any) -> Any:
        def of(kind: type) -> Any:
            def make(*args: Any) -> Actor:
                actor = Actor(self, kind, args, options["concurrency_groups"])
                self.actors.append(actor)
                return actor

            return SimpleNamespace(remote=make)

        return of

    def put(self, value: Any) -> Reference:
        future: Future[Any] = Future()
        future.set_result(value)
        return Reference(Copied(future))  # every reader gets a copy of its own

    def get(self, asked: Any, timeout: float | None = None) -> Any:
        if isinstance(asked, list):
            return [self.get(one, timeout) for one in asked]
        try:
            return asked.future.result(timeout)
        except TimeoutError:
            raise GetTimeoutError from None

    def wait(self, asked: list[Reference], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        done = wait([r.future for r in asked], timeout, FIRST_COMPLETED).done
        return [r for r in asked if r.future in done], [r for r in asked if r.future not in done]

    def kill(self, actor: Actor, no_restart: bool) -> None:
        actor.die()


class Copied:
    def __init__(self, future: Future[Any]) -> None:
        self._future = future

    def result(self, timeout: float | None = None) -> Any:
        return copy.deepcopy(self._future.result())
