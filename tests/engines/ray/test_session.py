"""Whose Ray it is: started and ended here, joined, or refused. Real ones run in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from convoy.engines.ray import session
from convoy.engines.ray.session import Session, check_address, connect
from convoy.errors import MachineError, OptionError


class Calls:
    """A module ``ray`` that writes down what is asked of it."""

    def __init__(self, initialized: bool = False, fails: Sequence[BaseException] = ()) -> None:
        self.initialized, self.fails = initialized, list(fails)
        self.made: list[tuple[str, Any]] = []

    def is_initialized(self) -> bool:
        return self.initialized

    def init(self, **options: Any) -> None:
        self.made.append(("init", (options, dict(os.environ))))
        if self.fails:
            raise self.fails.pop()
        self.initialized = True

    def shutdown(self) -> None:
        self.made.append(("shutdown", None))
        self.initialized = False

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(gcs_address="10.0.0.1:6379", namespace="theirs")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    made = Calls()
    monkeypatch.setattr(session, "ray_module", lambda: made)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return made


def test_a_local_ray_is_started_with_a_token_and_ended(calls: Calls) -> None:
    before = dict(os.environ)
    with connect(cpus=3) as made:
        assert made.owned and made.namespace.startswith("convoy-")
        ((name, (options, environment)),) = calls.made
        assert name == "init" and options["address"] == "local" and options["include_dashboard"] is False
        assert options["num_cpus"] >= 3 and options["log_to_driver"] is False
        assert options["configure_logging"] is False and options["namespace"] == made.namespace
        assert len(environment["RAY_AUTH_TOKEN"]) == 64 and "RAY_AUTH_MODE" not in environment
    assert calls.made[1:] == [("shutdown", None)] and dict(os.environ) == before


def test_an_address_in_the_environment_is_not_followed(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.9:6379")
    with connect():
        assert calls.made[0][1][0]["address"] == "local"


def test_the_last_session_of_this_process_ends_its_ray(calls: Calls) -> None:
    first = connect()
    second = connect()
    assert second.namespace == "theirs" and second.owned
    first.close()
    first.close()
    assert [name for name, _ in calls.made] == ["init"]
    second.close()
    assert [name for name, _ in calls.made] == ["init", "shutdown"]


def test_the_users_ray_is_used_and_left_alone(calls: Calls) -> None:
    calls.initialized = True
    for address in (None, "auto", "10.0.0.1:6379"):
        with connect(address) as made:
            assert not made.owned and made.namespace == "theirs"
    assert calls.made == []
    with pytest.raises(OptionError, match=r"connected to 10\.0\.0\.1:6379, not to other:1"):
        connect("other:1")


@pytest.mark.parametrize("mode", [None, "disabled", ""])
def test_a_cluster_without_a_token_is_refused_unless_insecure(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, mode: str | None
) -> None:
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with pytest.raises(OptionError, match=r"address head:6379 without RAY_AUTH_MODE=token") as refused:
        connect("head:6379")
    assert "--insecure" in str(refused.value.hint) and calls.made == []
    with connect("head:6379", insecure=True):
        options, environment = calls.made[0][1]
        assert options["address"] == "head:6379" and "num_cpus" not in options
        assert "RAY_AUTH_TOKEN" not in environment


def test_a_cluster_with_a_token_is_taken(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    check_address("head:6379", insecure=False)
    with connect("head:6379"):
        assert calls.made[0][1][1]["RAY_AUTH_MODE"] == "token"


def test_the_client_protocol_is_refused(calls: Calls) -> None:
    with pytest.raises(OptionError, match="Ray's client protocol"):
        connect("ray://head:10001", insecure=True)


def test_a_start_that_fails_leaves_nothing_behind(calls: Calls) -> None:
    before = dict(os.environ)
    calls.fails = [RuntimeError("no room\nand more"), RuntimeError("too slow"), RuntimeError("too slow")]
    with pytest.raises(MachineError, match=r"^Ray does not answer on this machine: no room$"):
        connect()
    assert [name for name, _ in calls.made] == ["init", "shutdown"] * 3 and dict(os.environ) == before
    calls.fails = [RuntimeError("too slow"), RuntimeError("too slow")]
    with connect() as made:
        assert made.owned
    assert [name for name, _ in calls.made[6:]] == ["init", "shutdown"] * 3


def test_a_cluster_is_not_asked_twice(calls: Calls) -> None:
    calls.fails = [ConnectionError("no such host")]
    with pytest.raises(MachineError, match="Ray does not answer at head:6379: no such host") as refused:
        connect("head:6379", insecure=True)
    assert len(calls.made) == 2 and "ray start --head" in str(refused.value.hint)


def test_ctrl_c_while_it_starts_is_passed_on(calls: Calls) -> None:
    before = dict(os.environ)
    calls.fails = [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        connect()
    assert [name for name, _ in calls.made] == ["init", "shutdown"] and dict(os.environ) == before


def test_cores_that_are_not_there_are_refused(fake_ray: Any) -> None:
    fake_ray.cores = 3.0
    made = Session(fake_ray, "n", False, lambda: None)
    made.need_cpus(3, "3 workers")
    with pytest.raises(OptionError, match="4 workers need 4 cores, and Ray has 3 free"):
        made.need_cpus(4, "4 workers")


def test_cores_of_actors_that_are_just_ending_are_waited_for(fake_ray: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made, free = Session(fake_ray, "n", False, lambda: None), iter([1.0, 2.0, 3.0])
    fake_ray.cores = 3.0
    monkeypatch.setattr(fake_ray, "available_resources", lambda: {"CPU": next(free)})
    made.need_cpus(3, "3 workers")
    assert next(free, None) is None
    monkeypatch.setattr(fake_ray, "available_resources", lambda: {"CPU": 1.0})
    monkeypatch.setattr(session, "_FREED_SECONDS", 0.2)
    with pytest.raises(OptionError, match="Ray has 1 free"):
        made.need_cpus(3, "3 workers")


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MachineError, match="needs Ray") as refused:
        connect()
    assert refused.value.hint == "pip install 'convoy-train[ray]'"


# --- with Ray ------------------------------------------------------------------------------------------------


def process(code: str, home: Path) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "OMP_"))}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**inherited, "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=500,
    )


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_real_ray_is_started_twice_and_the_home_stays_empty(tmp_path: Path) -> None:
    done = process(
        """
        import os, signal
        from convoy.engines.ray.session import connect

        class Counter:
            def __init__(self): self.count = 0
            def add(self): self.count += 1; return self.count, os.environ["OMP_NUM_THREADS"]

        def mine(number, frame): ...
        signal.signal(signal.SIGTERM, mine)
        for round in range(2):
            with connect(cpus=3) as session:
                import ray
                assert os.environ["RAY_AUTH_MODE"] == "token", "no token"
                actor = session.spawn(Counter, cpus=3, groups={"g": 1})
                call = actor.add.options(concurrency_group="g")
                assert ray.get([call.remote(), call.remote()]) == [(1, "3"), (2, "3")]
                assert signal.getsignal(signal.SIGTERM) is mine
                session.need_cpus(0, "none")
            assert not ray.is_initialized() and "RAY_AUTH_MODE" not in os.environ
            assert signal.getsignal(signal.SIGTERM) is mine
        print("well")
        """,
        tmp_path,
    )
    assert done.stdout.strip().endswith("well"), done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.slow
def test_an_address_needs_the_clusters_token(tmp_path: Path) -> None:
    """A driver is the cluster; others connect to it with its token, with a wrong one and with none."""
    code = """
        import os, subprocess, sys
        from convoy.engines.ray.session import connect
        with connect(cpus=2) as session:
            import ray
            address = ray.get_runtime_context().gcs_address
            child = '''if True:
                import sys
                from convoy.engines.ray.session import connect
                from convoy.errors import ConvoyError
                try:
                    with connect(sys.argv[1]) as session:
                        import ray
                        print("in", session.owned, ray.cluster_resources()["CPU"] >= 2)
                except ConvoyError as error:
                    print(type(error).__name__, error.message[:60])
            '''
            token = os.environ["RAY_AUTH_TOKEN"]
            for extra in ({"RAY_AUTH_TOKEN": token}, {"RAY_AUTH_TOKEN": "0" * 64}, {"RAY_AUTH_MODE": ""}):
                env = {**os.environ, **extra}
                subprocess.run([sys.executable, "-c", child, address], env=env, timeout=150)
            assert ray.cluster_resources()["CPU"] >= 2, "a driver that left took the cluster along"
    """
    done = process(code, tmp_path)
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stdout + done.stderr
    assert lines[0] == "in True True"
    assert lines[1].startswith("MachineError Ray does not answer at ")
    assert lines[2].startswith("OptionError address ") and "RAY_AUTH_MODE" in lines[2]
