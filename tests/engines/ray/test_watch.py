"""Listening to actors: reports in order, deaths once, silence once, and nothing after the end."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from convoy.engines.ray.session import Session
from convoy.engines.ray.watch import Watch, reason_of


class Speaker:
    def __init__(self) -> None:
        self.said = 0
        self.silent = threading.Event()

    def report(self, seconds: float) -> int:
        if self.silent.is_set():
            time.sleep(30)
        time.sleep(0.01)
        self.said += 1
        return self.said

    def end(self) -> None:
        """Nothing to stop."""


class Heard:
    def __init__(self) -> None:
        self.said: dict[str, list[int]] = {}
        self.events: list[tuple[str, str, Any]] = []

    def reported(self, name: str, report: Any) -> None:
        self.said.setdefault(name, []).append(report)

    def died(self, name: str, reason: str) -> None:
        self.events.append(("died", name, reason))

    def frozen(self, name: str, seconds: float) -> None:
        self.events.append(("frozen", name, seconds))

    def wait(self, what: Any) -> None:
        for _ in range(500):
            if what():
                return
            time.sleep(0.02)
        raise AssertionError((self.said, self.events))


@pytest.fixture
def listening(fake_ray: Any) -> Any:
    session = Session(fake_ray, "n", False, lambda: None)
    actors = {name: session.spawn(Speaker, groups={"health": 1}) for name in "ab"}

    def ask(actor: Any) -> Any:
        return lambda: actor.report.options(concurrency_group="health").remote(0.1)

    heard = Heard()
    watch = Watch(fake_ray, {name: ask(actor) for name, actor in actors.items()}, heard, lease_seconds=2.0)
    yield actors, heard, watch
    watch.close()


def test_reports_come_in_order(listening: Any) -> None:
    _, heard, watch = listening
    heard.wait(lambda: all(len(heard.said.get(name, [])) >= 5 for name in "ab"))
    watch.close()
    watch.close()
    counts = {name: len(said) for name, said in heard.said.items()}
    assert all(heard.said[name] == list(range(1, counts[name] + 1)) for name in "ab")
    time.sleep(0.1)
    assert {name: len(said) for name, said in heard.said.items()} == counts and heard.events == []


def test_a_death_is_told_once_and_the_others_go_on(listening: Any) -> None:
    actors, heard, _ = listening
    heard.wait(lambda: heard.said.get("b"))
    actors["a"].die()
    heard.wait(lambda: heard.events)
    so_far = len(heard.said["b"])
    heard.wait(lambda: len(heard.said["b"]) > so_far + 3)
    ((kind, name, reason),) = heard.events
    # The second where it died between two reports, and the next was asked for afterwards.
    assert (kind, name) == ("died", "a") and reason in ("end of file", "it was dead already")


def test_silence_is_told_once_when_the_lease_is_over(listening: Any) -> None:
    actors, heard, _ = listening
    actors["b"].instance.silent.set()
    heard.wait(lambda: heard.events)
    so_far = len(heard.said["a"])
    heard.wait(lambda: len(heard.said["a"]) > so_far + 20)
    ((kind, name, seconds),) = heard.events
    assert (kind, name) == ("frozen", "b") and 2.0 < seconds < 30


def test_a_watch_that_is_abandoned_says_nothing_more(listening: Any) -> None:
    actors, heard, watch = listening
    heard.wait(lambda: heard.said.get("a"))
    watch.abandon()
    time.sleep(0.4)
    actors["a"].die()
    time.sleep(0.4)
    assert heard.events == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("The actor died.\nexit detail: Worker ended. Some causes: (1) ...", "worker ended"),
        ("one\n\n  ValueError: two.\n", "ValueError: two"),
        ("", "OSError"),
    ],
)
def test_what_is_said_of_a_death(text: str, said: str) -> None:
    assert reason_of(OSError(text)) == said
