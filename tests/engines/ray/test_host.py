"""The actor's side alone: order, repetition, values that do not belong there, and what the driver hears of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from convoy.engines.program import Store
from convoy.engines.ray.failure import RemoteError, describe, revive
from convoy.engines.ray.host import Host
from convoy.engines.ray.message import pack, unpack
from convoy.errors import Diverged, InternalError, WorkerFailed
from convoy.schedule.action import Action, Ref


class Adding:
    """A resident whose state ``A`` is a number: ``+`` adds what the driver sends and hands the sum to lane b."""

    def __init__(self) -> None:
        self.total = torch.zeros(())
        self.heard: list[Any] = []
        self.program = self

    def run(self, action: Action, store: Store) -> int:
        for ref in action.reads:
            if not ref.is_state:
                self.total = self.total + store.take(ref)
        if not torch.isfinite(self.total):
            raise ZeroDivisionError(f"{action.label} went too far")
        for ref in action.writes:
            if not ref.is_state:
                store.put(ref, self.total.clone())
        return 4

    def called(self, ref: Ref) -> str:
        return f"the numbers {ref.name}"

    def encode(self, ref: Ref, value: Any) -> Any:
        return {"sum": value}

    def decode(self, ref: Ref, value: Any) -> Any:
        return value["add"]

    def result(self, action: Action) -> Any:
        return {"total": self.total} if action.kind == "S" else None

    def hear(self, news: Any) -> None:
        self.heard.append(news)

    def answer(self, topic: str, value: Any) -> Any:
        if topic != "total":
            raise InternalError(f"what is {topic}?")
        return [self.total, value]


class Recipe:
    def build(self, lane: str, own: Mapping[str, Any]) -> Adding:
        if "broken" in own:
            raise ValueError("cannot be built")
        return Adding()


class Peer:
    """Lane b, as lane a sees it."""

    def __init__(self) -> None:
        self.came: list[Any] = []
        self.deliver = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self._take))

    def _take(self, name: str, header: Any, array: Any) -> None:
        assert header["finite"]
        self.came.append((name, unpack(header, array)))


@pytest.fixture
def peer() -> Peer:
    return Peer()


@pytest.fixture
def host(peer: Peer) -> Iterator[Host]:
    made = Host("a", 1, {"i": ["a"], "s": ["b"]}, {"A": 0}, True)
    made.meet({"b": peer})
    assert made.install((Recipe(), None), {}) == {}
    yield made
    made.end()


def step(kind: str, number: int) -> str:
    return f"{kind} sum {number}.0 : A@{number} i@{number} => A@{number + 1} s@{number}"


def submit(host: Host, sequence: int, *actions: str, news: Any = ()) -> None:
    message = pack({"news": list(news), "actions": list(actions)})
    host.submit(sequence, message.header, message.array)


def deliver(host: Host, name: str, value: Any, finite: bool = False) -> None:
    message = pack({"add": value})
    host.deliver(name, {**message.header, "finite": finite}, message.array)


def reports(host: Host, enough: Any) -> dict[str, list[Any]]:
    """Reports put together until ``enough(them)``."""
    found: dict[str, list[Any]] = {"done": [], "events": [], "results": [], "failed": []}
    for _ in range(50):
        for key, items in unpack(*host.report(0.2)).items():
            found[key] += items
        if enough(found):
            return found
    raise AssertionError(found)


def test_actions_are_carried_out_when_their_values_are_there(host: Host, peer: Peer) -> None:
    submit(host, 0, step("P", 0), step("S", 1), news=["one", {"two": 2}])
    assert unpack(*host.report(0.05))["done"] == []
    deliver(host, "i@1", torch.tensor(10.0))
    deliver(host, "i@0", torch.tensor(1.0))
    found = reports(host, lambda r: len(r["done"]) == 2)
    assert found["done"] == [["P", "sum", 0, 0], ["S", "sum", 1, 0]] and found["failed"] == []
    assert [(batch, part, float(result["total"])) for batch, part, result in found["results"]] == [(1, 0, 11.0)]
    (first, *_), (second, *_) = found["events"]
    assert (first, second) == ("Psum.0", "Ssum.1")
    assert found["events"][1][4]["reads"] == {"A": 1} and found["events"][1][4]["writes"] == {"A": 2}
    for _ in range(100):
        if len(peer.came) == 2:
            break
        time.sleep(0.01)
    assert [(name, float(value["sum"])) for name, value in peer.came] == [("s@0", 1.0), ("s@1", 11.0)]
    assert host.resident.heard == ["one", {"two": 2}] and len(host.store) == 0


def test_submissions_are_taken_in_their_order_each_once(host: Host) -> None:
    for sequence in (2, 0, 0, 2, 1, 1):
        submit(host, sequence, step("P", sequence), news=[sequence])
    submit(host, 0, step("P", 0))
    for number in (2, 1, 0):
        deliver(host, f"i@{number}", torch.tensor(1.0))
    found = reports(host, lambda r: len(r["done"]) == 3)
    assert [batch for _, _, batch, _ in found["done"]] == [0, 1, 2] and found["failed"] == []
    assert host.resident.heard == [0, 1, 2]


def failure(host: Host) -> Exception:
    (described,) = reports(host, lambda r: r["failed"])["failed"]
    return revive(described)


def test_a_value_that_comes_twice_is_refused(host: Host) -> None:
    deliver(host, "i@0", torch.tensor(1.0))
    deliver(host, "i@0", torch.tensor(1.0))
    assert isinstance(failure(host), InternalError)


@pytest.mark.parametrize("name", ["s@0", "other@0"])
def test_a_value_for_somebody_else_is_refused(host: Host, name: str) -> None:
    deliver(host, name, torch.tensor(1.0))
    assert "was delivered to a, which does not read it" in str(failure(host))


def test_numbers_that_are_not_finite_are_refused_where_they_have_to_be(host: Host) -> None:
    deliver(host, "i@0", torch.tensor(float("nan")))  # of the driver: data may be what they are
    assert unpack(*host.report(0.05))["failed"] == []
    deliver(host, "i@1", torch.tensor(float("nan")), finite=True)
    found = failure(host)
    assert isinstance(found, Diverged) and found.message == "the numbers i are not finite"


def test_an_action_that_fails_is_told_with_its_text_and_traceback(host: Host) -> None:
    submit(host, 0, step("P", 0), step("P", 1))
    deliver(host, "i@0", torch.tensor(float("inf")))
    found = reports(host, lambda r: r["failed"])
    assert found["done"] == [] and Action.parse(found["failed"][0]["action"]) == Action.parse(step("P", 0))
    error = revive(found["failed"][0])
    assert type(error).__name__ == "ZeroDivisionError" and isinstance(error, RemoteError)
    assert "in run" in error.trace and "Psum.0 went too far" in str(error)


def test_a_schedule_out_of_order_is_told(host: Host) -> None:
    submit(host, 0, step("P", 1))
    assert "program order" in str(failure(host))


def test_questions(host: Host) -> None:
    message = pack("hello")
    header, array = host.ask("total", message.header, message.array)
    assert [float(unpack(header, array)[0]), unpack(header, array)[1]] == [0.0, "hello"]
    refused = host.ask("age", message.header, message.array)
    assert isinstance(refused, dict) and isinstance(revive(refused["failed"]), InternalError)


def test_a_resident_that_cannot_be_built() -> None:
    made = Host("a", 1, {}, {}, True)
    described = made.install((Recipe(), None), {"broken": True})["failed"]
    assert str(revive(described)) == "cannot be built"
    submit(made, 0)
    assert "before it was installed" in str(failure(made))


def test_about_says_who_it_is(host: Host) -> None:
    before = time.perf_counter()
    about = host.about()
    assert about["torch"] == torch.__version__ and before <= about["clock"] <= time.perf_counter()


def test_errors_of_convoy_come_back_as_what_they_were() -> None:
    sent = WorkerFailed("it failed", hint="look", action="F1.2", grid="...")
    came = revive(describe(sent))
    assert type(came) is WorkerFailed and came.message == "it failed" and came.hint == "look"
    odd = type("not a name", (Exception,), {})("x")
    assert type(revive(describe(odd))).__name__ == "RemoteError"
