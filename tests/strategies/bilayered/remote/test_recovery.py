"""The server's actor dies or stands still at any message, before or after it did its work: nothing changes but time.

Actors are objects of this process here, and carry out a call when it is made.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convoy.errors import RESUME, RunError
from convoy.strategies.bilayered.layout import Entry, Flat, Layout
from convoy.strategies.bilayered.messages import Goal, Grant, Merge, Message, Note, Part, Push
from convoy.strategies.bilayered.parcel import Parcel
from convoy.strategies.bilayered.remote.clock import STRIDE, Clock
from convoy.strategies.bilayered.remote.rows import effect_of, effect_row
from convoy.strategies.bilayered.remote.server import ParcelLost, RemoteServer
from convoy.strategies.bilayered.server import Server
from convoy.strategies.bilayered.state import Rules, State
from convoy.strategies.bilayered.virtual import Cluster, Script

LAYOUT = Layout((Entry("w", "weight", "weights/float32", 0, 6, (6,)),), {"weights/float32": 6})
FIRST: Flat = {"weights/float32": np.linspace(-1, 1, 6, dtype=np.float32)}
SCRIPT = Script((1e-3, 2.3e-3), speeds=(2.0, 1.0))


class RayError(Exception):
    pass


class Ray:
    """References are lists of one; what is not there yet is empty."""

    exceptions = SimpleNamespace(RayError=RayError)

    def put(self, value: Any) -> list[Any]:
        return [value]

    def get(self, reference: list[Any]) -> Any:
        if isinstance(reference[0], RayError):
            raise reference[0]
        return reference[0]

    def wait(self, references: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        return [r for r in references if r], [r for r in references if not r]


class Session:
    """``fates``: number of a call of ``handle``, over all actors → "before", "after" or "silent"."""

    def __init__(self, fates: dict[int, str]) -> None:
        self.ray, self.fates, self.calls, self.spawned = Ray(), fates, 0, 0

    def spawn(self, kind: type, *args: Any, **options: Any) -> Any:
        self.spawned += 1
        made, session, gone = kind(*args), self, [False]

        class Method:
            def __init__(self, name: str, returns: int = 1) -> None:
                self.name, self.returns = name, returns

            def options(self, concurrency_group: str = "", num_returns: int = 1) -> Method:
                return Method(self.name, num_returns)

            def remote(self, *values: Any) -> Any:
                fate = "dead" if gone[0] else ""
                if self.name == "handle" and not fate:
                    fate = session.fates.get(session.calls, "")
                    session.calls += 1
                answer = None if fate in ("dead", "before", "silent") else getattr(made, self.name)(*values)
                if fate:
                    gone[0] = True
                    reply: list[Any] = [] if fate == "silent" else [RayError("exit detail: killed. Etc.")]
                    return (reply, reply) if self.returns == 2 else reply
                return ([answer[0]], [answer[1]]) if self.returns == 2 else [answer]

        return SimpleNamespace(handle=Method("handle"), install=Method("install"))

    def kill(self, actor: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def ray_of_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    """What actors import."""
    import sys

    monkeypatch.setitem(sys.modules, "ray", Ray())  # type: ignore[arg-type]


def rules(update: str) -> Rules:
    return Rules(samples=48, batch_size=4, update=update, allocation="idpa-mended", batches=2, round=2)


def drive(server: Server, parcel: Callable[[Flat], Any]) -> list[Message]:
    """A run of three passes; what a node makes of the weights depends on them and its lease alone."""
    cluster, heard = Cluster(SCRIPT), []
    opening: list[Message] = [Goal(3), *cluster.opening()]
    while not server.state.done:
        message = opening.pop(0) if opening else cluster.next(server.state)
        assert message is not None
        carried = None
        if isinstance(message, Push) and server.expects(message):
            lease = server.state.nodes[message.node].lease
            assert lease is not None
            base = server.version(lease.base)
            flat = {k: v * np.float32(0.9) + np.float32(0.1 * message.node + 0.01) for k, v in base.items()}
            carried = parcel(flat)
        heard.append(message)
        cluster.hear(server.handle(message, carried))
    return heard


def remote(folder: Path, update: str, fates: dict[int, str]) -> tuple[RemoteServer, Session, list[str]]:
    session, told = Session(fates), list[str]()
    ticking = itertools.count(0.0, STRIDE)
    clock = Clock(steady=lambda: next(ticking))
    made: Any = session
    server = RemoteServer(made, folder, LAYOUT, State(rules(update)), FIRST, recipe=None, clock=clock, told=told.append)
    server.start()
    return server, session, told


@pytest.mark.parametrize("update", ["agwu-mended", "agwu", "sgwu-mended"])
@settings(max_examples=25)
@given(
    fates=st.dictionaries(st.integers(0, 60), st.sampled_from(["before", "after", "silent"]), max_size=6).filter(
        lambda fates: not any(all(n + i in fates for i in range(4)) for n in fates)
    )
)
def test_whatever_happens_to_the_server_state_and_weights_are_those_of_one_that_lived(
    tmp_path_factory: pytest.TempPathFactory, update: str, fates: dict[int, str]
) -> None:
    plain = Server(rules(update), LAYOUT, FIRST)
    expected = drive(plain, lambda flat: Parcel("weights", flat))
    server, session, told = remote(tmp_path_factory.mktemp("journal"), update, fates)
    heard = drive(server, lambda flat: ("weights", [flat]))
    assert heard == expected
    assert server.state == plain.state
    assert np.array_equal(server.weights["weights/float32"], plain.weights["weights/float32"])
    struck = sum(n < session.calls for n in fates)
    assert server.restarts == len(told) == struck == session.spawned - 1


def test_a_server_that_never_lives_ends_the_run(tmp_path: Path) -> None:
    server, _, _ = remote(tmp_path, "agwu-mended", dict.fromkeys(range(100), "before"))
    with pytest.raises(RunError, match="did not come back in 5 attempts") as caught:
        drive(server, lambda flat: ("weights", [flat]))
    assert caught.value.hint == RESUME  # the Trainer says whether there is something to resume


def test_weights_that_went_down_with_their_machine_are_told_from_a_dead_server(tmp_path: Path) -> None:
    server, _, told = remote(tmp_path, "agwu-mended", {})
    with pytest.raises(ParcelLost):
        drive(server, lambda flat: ("weights", [RayError("the object is lost")]))
    assert not told


def test_effects_travel_as_plain_values() -> None:
    effects = [
        Grant(1, 0, 3, 2, 1, ((0, 4), (8, 9)), 0, 4, 7),
        Merge(3, "add", (Part(1, 0, 3, 2, 0.25, 4),)),
        Note("join", "timing", {"node": 1}),
    ]
    assert [effect_of(effect_row(effect)) for effect in effects] == effects


def test_the_clock_does_not_count_a_pause() -> None:
    times = iter([10.0, 10.5, 500.0, 500.25])
    clock = Clock(3.0, steady=lambda: next(times))
    assert [clock.look() for _ in range(3)] == [3.5, 3.5 + STRIDE, 3.75 + STRIDE]
