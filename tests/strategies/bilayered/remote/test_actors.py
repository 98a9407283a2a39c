"""Real actors of a local Ray: arrivals replay to the same bits, and a run goes on when nodes and the server die."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from convoy.data import open_data
from convoy.engines.ray.session import Session, connect
from convoy.errors import OptionError
from convoy.models import build
from convoy.strategies.base import Settings, Turn
from convoy.strategies.bilayered import BiLayered
from convoy.strategies.bilayered.checks import check
from convoy.strategies.bilayered.remote import server
from convoy.strategies.bilayered.remote.step import RemoteStep, most_nodes
from convoy.strategies.bilayered.replay import replay
from convoy.strategies.bilayered.rules.whole import whole
from convoy.strategies.bilayered.state import Rules
from convoy.training.trainer import Trainer

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

SETTINGS = Settings(seed=3, threads=1, clip=1.0)


@pytest.fixture(scope="module", autouse=True)
def ray() -> Iterator[Session]:
    """One Ray for all: the steps join it."""
    with connect(cpus=8) as session:
        yield session


def parts() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = build("lenet5", channels=1, image_size=28, seed=0)
    return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


class Run:
    """``fit`` on the digits; ``at(event, step)`` hears every event."""

    def __init__(self, strategy: BiLayered, epochs: int = 1, at: Callable[[Any, RemoteStep], None] | None = None):
        self.events: list[Any] = []
        self.strategy, self.epochs = strategy, epochs
        self.data = open_data("digits", batch_size=32).train
        self.model, optimizer = parts()
        self.step: Any = None

        def heard(event: Any) -> None:
            self.events.append(event)
            if at is not None:
                at(event, self.step)

        original = RemoteStep.__init__

        def kept(step: RemoteStep, *args: Any, **keywords: Any) -> None:
            original(step, *args, **keywords)
            self.step = step

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RemoteStep, "__init__", kept)
            trainer = Trainer(
                self.model,
                nn.CrossEntropyLoss(),
                optimizer,
                strategy=strategy,
                settings=SETTINGS,
                callbacks=[heard],
            )
            trainer.fit(self.data, epochs=epochs)

    def named(self, name: str) -> list[Any]:
        return [event for event in self.events if event.name == name]

    def prove(self) -> None:
        """The ledger adds up, everything owed is merged, and the arrivals lead to the same bits in one thread."""
        state = self.step.server_state
        check(state)
        assert state.accepted == self.epochs * len(self.data.source.labels) - self.epochs * self.held_out
        versions = [event.data["version"] for event in self.named("merge")]
        assert versions == list(range(1, state.version + 1))
        again, optimizer = parts()
        repeated = replay(
            again,
            nn.CrossEntropyLoss(),
            optimizer,
            self.strategy,
            self.data,
            self.events,
            epochs=self.epochs,
            settings=SETTINGS,
        )
        assert repeated.first_difference is None
        assert all(torch.equal(a, b) for a, b in zip(self.model.parameters(), again.parameters(), strict=True))

    @property
    def held_out(self) -> int:
        return len(self.data.source.labels) - self.step.samples


def once(action: Callable[[RemoteStep], None], push: int) -> Callable[[Any, RemoteStep], None]:
    """Do it when the server heard so many pushes."""
    count = 0

    def at(event: Any, step: RemoteStep) -> None:
        nonlocal count
        if event.name == "arrival" and event.data["message"] == "push":
            count += 1
            if count == push:
                action(step)

    return at


def kill(name: str) -> Callable[[RemoteStep], None]:
    return lambda step: os.kill(step.processes[name]["process"], signal.SIGKILL)


def stop(name: str) -> Callable[[RemoteStep], None]:
    return lambda step: os.kill(step.processes[name]["process"], signal.SIGSTOP)


def with_grace(seconds: float) -> Callable[..., None]:
    """``Rules`` whose leases run out earlier."""
    original = Rules.__init__

    def made(self: Rules, **keywords: Any) -> None:
        original(self, **{**keywords, "grace_seconds": seconds})

    return made


def test_a_pass_on_two_nodes_replays_to_the_same_bits() -> None:
    run = Run(BiLayered(nodes=(2, 1), round=6, engine="ray"))
    run.prove()
    assert {event.data["node"] for event in run.named("arrival") if event.data["message"] == "push"} == {0, 1}
    assert run.step.server_state.again == run.step.server_state.duplicates == 0
    probed = [event.data["speed"] for event in run.named("arrival") if event.data["message"] == "join"]
    first = run.named("allocation")[0].data
    assert min(probed) > 10  # samples a second, in place of the nominal 2 and 1, which are wrong here
    assert first["batch"] == 1
    assert list(first["samples"].values()) == list(whole(probed, sum(first["samples"].values())))


def test_a_killed_node_comes_back_and_its_samples_are_trained_by_others() -> None:
    killed = once(kill("node 1"), push=5)
    waits_for = ""

    def at(event: Any, step: RemoteStep) -> None:
        """Starting a process takes longer than a pass: turns are held up until it is back."""
        nonlocal waits_for
        killed(event, step)
        if event.name == "dead":
            waits_for = "join"
        elif event.name == waits_for:
            waits_for = ""
        elif event.name == "merge" and waits_for:
            time.sleep(1)

    run = Run(BiLayered(nodes=2, round=4, engine="ray"), epochs=4, at=at)
    run.prove()
    assert len(run.named("dead")) == 1
    joined = [event.data for event in run.named("join") if event.data["incarnation"] == 1]
    assert [data["node"] for data in joined] == [1]


@pytest.mark.slow
def test_a_frozen_node_loses_its_lease_and_joins_as_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on once others got its samples. From the freeze to its return turns are held up: node 0 alone would
    be through with everything before the lease runs out, or before a busy machine lets node 1 run again."""
    monkeypatch.setattr(Rules, "__init__", with_grace(2.0))
    frozen: list[bool] = []  # whether it still is

    def freeze(step: RemoteStep) -> None:
        stop("node 1")(step)
        frozen.append(True)

    stopped = once(freeze, push=5)

    def at(event: Any, step: RemoteStep) -> None:
        stopped(event, step)
        if event.name == "expired" and event.data["node"] == 1 and any(frozen):
            os.kill(step.processes["node 1"]["process"], signal.SIGCONT)
        elif event.name == "join" and event.data["node"] == 1 and frozen:
            frozen[-1] = False
        elif event.name == "merge" and any(frozen):
            time.sleep(0.5)

    run = Run(BiLayered(nodes=2, round=4, engine="ray"), epochs=4, at=at)
    run.prove()
    assert 1 in {event.data["node"] for event in run.named("expired")}
    assert run.step.server_state.nodes[1].incarnation >= 1


def test_a_killed_server_comes_back_from_its_journal() -> None:
    """While a push waits at the barrier, and with quality measured."""
    run = Run(BiLayered(nodes=2, round=4, update="sgwu", engine="ray"), epochs=2, at=once(kill("server"), push=7))
    run.prove()
    assert len(run.named("server restarted")) == 1
    assert "died" in run.named("server restarted")[0].data["why"]


def test_a_frozen_server_is_killed_and_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_LEAST_SECONDS", 3.0)
    run = Run(BiLayered(nodes=2, round=4, engine="ray"), epochs=2, at=once(stop("server"), push=7))
    run.prove()
    assert "no answer" in run.named("server restarted")[0].data["why"]


def test_one_node_is_the_plain_loop_bit_for_bit() -> None:
    run = Run(BiLayered(nodes=1, batches=1, round=5, engine="ray"), epochs=2)
    plain, optimizer = parts()
    Trainer(plain, nn.CrossEntropyLoss(), optimizer, settings=SETTINGS).fit(run.data, epochs=2)
    assert all(torch.equal(a, b) for a, b in zip(run.model.parameters(), plain.parameters(), strict=True))


def test_a_checkpoint_goes_on_with_new_incarnations_and_also_in_one_thread() -> None:
    """Half of the run here; what was under way is leased again, by actors as by the oracle."""
    work = open_data("digits", batch_size=32).train
    strategy = BiLayered(nodes=2, round=6, engine="ray")
    model, optimizer = parts()
    bound: dict[str, Any] = {"passes": 2, "settings": SETTINGS}
    loss = nn.CrossEntropyLoss()
    with strategy.bind_data(model.train(), loss, optimizer, work, **bound) as step:
        while step.merged() < step.samples:
            step(Turn(), None)
        step.drain()
        saved, weights = step.state(), {k: v.clone() for k, v in model.state_dict().items()}
    for engine in ("inline", "ray"):
        model, optimizer = parts()
        model.load_state_dict(weights)
        other = BiLayered(nodes=2, round=6, engine=engine)
        with other.bind_data(model.train(), loss, optimizer, work, **bound) as step:
            step.restore(saved)
            while step.merged() < 2 * step.samples:
                step(Turn(), None)
            state = step.server_state
        check(state)
        assert state.accepted == 2 * step.samples
        assert [node.incarnation for node in state.nodes] == [1, 1]


def test_more_nodes_than_this_machine_can_hold_are_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, ray: Session
) -> None:
    monkeypatch.setattr(ray.ray, "is_initialized", lambda: False)
    strategy, (model, optimizer) = BiLayered(nodes=most_nodes() + 1, engine="ray"), parts()
    with pytest.raises(OptionError, match=f"{most_nodes() + 1} processes on this machine") as caught:
        strategy.bind_data(model, nn.CrossEntropyLoss(), optimizer, open_data("digits", batch_size=32).train, passes=1)
    assert f"take {most_nodes()} at most" in str(caught.value.hint)
