"""The streams engine on a recorder in place of a device: every dependency between lanes becomes a wait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from convoy.engines.engine import EngineOptions
from convoy.engines.program import Store
from convoy.engines.streams import Cuda, Hazards, StreamsEngine
from convoy.schedule.action import Action
from convoy.schedule.schedule import Schedule
from convoy.strategies.pipelined.clock import PipelineSchedule, delays


class Stream:
    """Counts its work and keeps what it waited for: name of another stream → work of it that is surely done."""

    def __init__(self, name: str) -> None:
        self.name, self.work = name, 0
        self.seen: dict[str, int] = {}


class Mark:
    def __init__(self, stream: Stream) -> None:
        self.stream, self.work = stream.name, stream.work
        self.seen = dict(stream.seen)
        self.synchronized = False

    def synchronize(self) -> None:
        self.synchronized = True

    def query(self) -> bool:
        return self.synchronized


class Recorder:
    def __init__(self) -> None:
        self.kept: list[tuple[Any, str]] = []

    def open(self, lane: str) -> Stream:
        return Stream(lane)

    @contextmanager
    def using(self, stream: Stream) -> Iterator[None]:
        yield

    def mark(self, stream: Stream) -> Mark:
        stream.work += 1
        return Mark(stream)

    def wait(self, stream: Stream, mark: Mark) -> None:
        for name, work in {**mark.seen, mark.stream: mark.work}.items():
            stream.seen[name] = max(stream.seen.get(name, 0), work)

    def keep(self, value: Any, stream: Stream) -> None:
        self.kept.append((value, stream.name))


class Nothing:
    def run(self, action: Action, store: Store) -> int:
        for ref in action.reads:
            if not ref.is_state:
                store.take(ref)
        for ref in action.writes:
            if not ref.is_state:
                store.put(ref, torch.zeros(1))
        return 0


def pipeline(placement: str, batches: int) -> tuple[Schedule, tuple[str, ...]]:
    clock = PipelineSchedule(delays(3), ((1, 2), (2, 3), (1, 3)), (1, 3), placement)
    schedule = Schedule()
    for batch in range(batches):
        schedule.extend(clock.enter(batch))
    schedule.extend(clock.drain())
    return schedule, clock.lanes()


@pytest.mark.parametrize("placement", ["colocated", "split"])
def test_the_device_sees_every_dependency(placement: str) -> None:
    """Whatever an action depends on lies before it on its own stream, or its stream waited for it."""
    schedule, lanes = pipeline(placement, 6)
    device = Recorder()
    before: dict[Action, dict[str, int]] = {}
    place: dict[Action, tuple[str, int]] = {}

    class Watching(StreamsEngine):
        def _carry_out(self, lane: str, action: Action) -> None:
            super()._carry_out(lane, action)
            stream = self._streams[lane]
            before[action] = dict(stream.seen)
            place[action] = (lane, stream.work)

    engine = Watching(Nothing(), Store(), EngineOptions(lanes=dict.fromkeys(lanes, 1)), device)
    engine.submit(schedule)
    engine.settle()
    engine.close()

    writer: dict[Any, Action] = {}
    readers: dict[Any, list[Action]] = {}
    checked = 0
    for lane, action in schedule:
        needed = [writer[ref] for ref in action.reads if ref in writer]
        for ref in action.writes:
            if ref.is_state:
                needed += readers.get((ref.name, ref.version - 1), [])
        for other in needed:
            other_lane, work = place[other]
            if other_lane != lane:
                assert before[action].get(other_lane, 0) >= work, f"{action.label} does not wait for {other.label}"
                checked += 1
        for ref in action.reads:
            if ref.is_state:
                readers.setdefault((ref.name, ref.version), []).append(action)
        writer.update(dict.fromkeys(action.writes, action))
    assert checked > 20


def test_waiting_means_waiting_for_the_device() -> None:
    schedule, lanes = pipeline("colocated", 2)
    engine = StreamsEngine(Nothing(), Store(), EngineOptions(lanes=dict.fromkeys(lanes, 1)), Recorder())
    engine.submit(schedule)
    last = schedule.entries[-1][1]
    ThreadsWait = super(StreamsEngine, engine)
    ThreadsWait.wait(last)
    assert not engine.is_done(last), "launched, but the device is not through"
    engine.wait(last)
    assert engine.is_done(last)
    engine.close()


def test_what_crosses_streams_is_kept() -> None:
    schedule, lanes = pipeline("colocated", 2)
    device = Recorder()
    engine = StreamsEngine(Nothing(), Store(), EngineOptions(lanes=dict.fromkeys(lanes, 1)), device)
    engine.submit(schedule)
    engine.settle()
    engine.close()
    assert {name for _, name in device.kept} == {"worker 1", "worker 2", "worker 3"}


def test_a_value_may_have_readers_on_several_streams() -> None:
    """The last of them still waits for the writer, and then nothing is remembered."""
    text = "a | F x 0.0 : => v@0\nb | F y 0.0 : v@0 => u@0\nc | F z 0.0 : v@0 u@0 => w@0"
    hazards, entries = Hazards(), Schedule.parse(text).entries
    for _, action in entries:
        hazards.admit(action)
    waited = []
    for lane, action in entries:
        waited.append([mark.stream for mark in hazards.before(action)])
        hazards.after(action, Mark(Stream(lane)))
    assert waited == [[], ["a"], ["a", "b"]]
    assert len(hazards) == 1, "w, which nobody has read yet"


def test_bookkeeping_does_not_grow() -> None:
    hazards = Hazards()
    stream = Stream("s")
    sizes = []
    schedule, _ = pipeline("colocated", 40)
    for _, action in schedule:
        hazards.before(action)
        hazards.after(action, Mark(stream))
        sizes.append(len(hazards))
    assert max(sizes[len(sizes) // 2 :]) <= max(sizes[: len(sizes) // 2])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_real_device() -> None:
    schedule, lanes = pipeline("split", 4)
    devices = dict.fromkeys(lanes, 0)
    engine = StreamsEngine(Nothing(), Store(), EngineOptions(lanes=dict.fromkeys(lanes, 1)), Cuda(devices))
    engine.submit(schedule)
    engine.settle()
    engine.close()
