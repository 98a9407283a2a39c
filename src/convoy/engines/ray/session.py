"""A connection to Ray: a local one that this process owns, a cluster by address, or one that the user started.

A local Ray listens on this machine only and wants a token, which is made for this process and stands in its
environment; the user's home is not written. A token does not encrypt: for a cluster, the network has to be trusted.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any, Self

from convoy.engines.interrupts import uninterrupted
from convoy.engines.ray.extra import ray_module
from convoy.errors import MachineError, OptionError

_ATTEMPTS = 3
_FREED_SECONDS = 15.0
_token = secrets.token_hex(32)  # Ray reads it once a process, so a second local Ray must have the same
_lock = threading.RLock()  # a finalizer may close a session in the middle of opening another
_shared: dict[str, Any] = {"users": 0, "environment": {}}  # of the Ray that this process connected


class Session:
    """Ray, ready for actors. ``owned``: whether this process connected it and will end it with its last session."""

    def __init__(self, ray: Any, namespace: str, owned: bool, end: Callable[[], None]) -> None:
        self.ray = ray
        self.namespace = namespace
        self.owned = owned
        self._end: Callable[[], None] | None = end
        self._actors: list[Any] = []

    def spawn(
        self,
        kind: type,
        *args: Any,
        cpus: int = 1,
        groups: Mapping[str, int] | None = None,
        here: bool = False,
        **keywords: Any,
    ) -> Any:
        """An actor of the class ``kind`` with ``cpus`` cores (and so many threads of OpenMP), never restarted by Ray.
        ``here``: on the machine of this process, whose files it needs.

        ``groups``: name → threads, for methods that must be answered while others run; call them with
        ``actor.method.options(concurrency_group=name).remote(...)``.
        """
        options: dict[str, Any] = {"num_cpus": cpus, "max_restarts": 0, "max_task_retries": 0}
        if groups:
            options["concurrency_groups"] = dict(groups)
        if here:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            own = self.ray.get_runtime_context().get_node_id()
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(own, soft=False)
        elif len(self.ray.nodes()) > 1:
            options["scheduling_strategy"] = "SPREAD"
        actor = self.ray.remote(**options)(kind).remote(*args, **keywords)
        self._actors.append(actor)
        return actor

    def kill(self, actor: Any) -> None:
        """End an actor at once. May be called for one that is dead."""
        if actor in self._actors:
            self._actors.remove(actor)
        with suppress(Exception):  # Ray was shut down, or the machine is gone: it is dead either way
            self.ray.kill(actor, no_restart=True)

    def need_cpus(self, count: int, what: str) -> None:
        """Raise OptionError where ``count`` cores are not free: actors would wait for them without a word. Those of
        actors that are just ending are waited for."""
        until = time.monotonic() + _FREED_SECONDS
        while (free := self.ray.available_resources().get("CPU", 0.0)) < count:
            if self.ray.cluster_resources().get("CPU", 0.0) < count or time.monotonic() > until:
                raise OptionError(
                    f"{what} need {count} cores, and Ray has {free:g} free",
                    hint="take fewer stages or threads, or start Ray with more cores (ray start --num-cpus)",
                )
            time.sleep(0.1)

    def close(self) -> None:
        """End the actors, and Ray itself where this was the last session of the process that connected it."""
        for actor in list(self._actors):
            self.kill(actor)
        end, self._end = self._end, None
        if end is not None:
            end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def connect(address: str | None = None, *, insecure: bool = False, cpus: int = 1) -> Session:
    """Connect to Ray; without ``address``, to the one that runs in this process, else to a new local one.

    ``cpus``: cores that a new local Ray lets actors have (they may be more than there are). Raises OptionError where
    the address is refused, MachineError where Ray does not start or answer.
    """
    ray = ray_module()
    with _lock:
        if ray.is_initialized():
            return _join(ray, address)
        if address is not None:
            check_address(address, insecure)
        namespace = f"convoy-{uuid.uuid4().hex[:12]}"
        environment: dict[str, str | None] = {
            "RAY_ENABLE_AUTO_CONNECT": "0"
        }  # nobody shall start another one by asking for an actor
        if address is None:
            environment |= _local_environment()
        before = {name: os.environ.get(name) for name in environment}
        _set(environment)
        options: dict[str, Any] = {"address": address or "local", "namespace": namespace}
        if address is None:
            options |= {"include_dashboard": False, "num_cpus": max(cpus, os.cpu_count() or 1)}
        try:
            _init(ray, options, attempts=_ATTEMPTS if address is None else 1)
        except BaseException as error:
            _set(before)
            if not isinstance(error, Exception):
                raise
            where = f"at {address}" if address is not None else "on this machine"
            hint = "check the address and that `ray start --head` runs there" if address is not None else None
            raise MachineError(f"Ray does not answer {where}: {_first_line(error)}", hint=hint) from error
        _shared.update(users=1, environment=before)
        return Session(ray, namespace, True, lambda: _leave(ray))


def _init(ray: Any, options: Mapping[str, Any], attempts: int) -> None:
    """``ray.init`` with what it changes about signals undone. Ray gives its own processes half a minute to start, which
    on a machine that is busy is too short; what it loaded is at hand the next time."""
    for left in range(attempts - 1, -1, -1):
        try:
            with uninterrupted(), _sigterm_kept(), _quiet():
                ray.init(configure_logging=False, log_to_driver=False, **options)
            return
        except BaseException as error:
            with _sigterm_kept(), _quiet():
                ray.shutdown()
            if not left or not isinstance(error, Exception):
                raise


def check_address(address: str, insecure: bool) -> None:
    """Refuse what is no address of a cluster, and a cluster without a token unless ``insecure`` says so: whoever can
    connect to it can run code on its machines."""
    if "://" in address:
        raise OptionError(
            f"address {address!r} is Ray's client protocol, which is not supported",
            hint="run on a machine of the cluster and give HOST:PORT of its head, or auto",
        )
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token" and not insecure:
        raise OptionError(
            f"address {address} without RAY_AUTH_MODE=token would let anyone who reaches it run code",
            hint="set RAY_AUTH_MODE=token and the cluster's RAY_AUTH_TOKEN, or say insecure (--insecure)",
        )


def _join(ray: Any, address: str | None) -> Session:
    """Take part in the Ray that runs in this process already."""
    context = ray.get_runtime_context()
    if address not in (None, "auto", context.gcs_address):
        raise OptionError(
            f"Ray runs in this process already, connected to {context.gcs_address}, not to {address}",
            hint="leave the address out, or call ray.shutdown() first",
        )
    owned = _shared["users"] > 0
    if owned:
        _shared["users"] += 1
    return Session(ray, context.namespace, owned, (lambda: _leave(ray)) if owned else (lambda: None))


def _leave(ray: Any) -> None:
    with _lock:
        _shared["users"] -= 1
        if _shared["users"]:
            return
        with uninterrupted(), _sigterm_kept(), _quiet():
            ray.shutdown()
        _set(_shared["environment"])


def _local_environment() -> dict[str, str | None]:
    """A token of this process, no usage statistics (which would write to the home), and no workers before they are
    asked for. A mode that is not set lets Ray turn on tokens itself, also where it was imported long before."""
    environment: dict[str, str | None] = {
        "RAY_AUTH_MODE": None,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_prestart_worker_first_driver": "0",
        "RAY_enable_worker_prestart": "0",
        "RAY_worker_niceness": "0",  # else actors come after every other program
    }
    if not os.environ.get("RAY_AUTH_TOKEN_PATH"):
        environment["RAY_AUTH_TOKEN"] = os.environ.get("RAY_AUTH_TOKEN") or _token
    return environment


def _set(environment: Mapping[str, str | None]) -> None:
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray warns of what is meant here: that tokens are on, what its next version will do."""
    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Ray puts a handler of its own in place of the one that was there."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if main else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


@contextmanager
def by_value(ray: Any, modules: set[ModuleType]) -> Iterator[None]:
    """Within this block, Ray's serialiser takes what these modules define along, instead of importing them there."""
    registered = []
    try:
        for module in modules:
            ray.cloudpickle.register_pickle_by_value(module)
            registered.append(module)
        yield
    finally:
        for module in registered:
            ray.cloudpickle.unregister_pickle_by_value(module)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
