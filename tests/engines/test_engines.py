"""Engines on a toy program: order, versions, failures, stalls."""

import threading
import time
from collections.abc import Callable

import pytest

from convoy.engines.engine import Engine, EngineOptions
from convoy.engines.inline import InlineEngine
from convoy.engines.program import Store
from convoy.engines.threads import ThreadsEngine
from convoy.errors import InternalError, RunError, Stalled, WorkerFailed
from convoy.events.event import Event
from convoy.schedule.action import Action, Ref
from convoy.schedule.schedule import Schedule

WORK = Schedule.parse(
    """
    driver   | E 0 0.0 : => i1@0
    worker 1 | F 1 0.0 : W1@0 i1@0 => x1>2@0 s1@0
    worker 2 | F 2 0.0 : W2@0 x1>2@0 => g2>1@0
    worker 2 | U 2 0.0 : W2@0 => W2@1
    driver   | E 0 1.0 : => i1@1
    worker 1 | F 1 1.0 : W1@0 i1@1 => x1>2@1 s1@1
    worker 1 | B 1 0.0 : W1@0 s1@0 g2>1@0 =>
    worker 1 | U 1 0.0 : W1@0 => W1@1
    worker 2 | F 2 1.0 : W2@1 x1>2@1 => g2>1@1
    worker 1 | B 1 1.0 : W1@1 s1@1 g2>1@1 =>
    """
)
LANES = {"worker 1": 1, "worker 2": 1}


class Toy:
    """Writes what it read: each value is the list of labels that led to it."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.threads: set[str] = set()

    def run(self, action: Action, store: Store) -> int:
        history = [step for ref in action.reads if not ref.is_state for step in store.take(ref)]
        self.done.append(action.label)
        self.threads.add(threading.current_thread().name)
        for ref in action.writes:
            if not ref.is_state:
                store.put(ref, [*history, action.label])
        return 0


def start(kind: type, program: Toy, store: Store, **options: object) -> Engine:
    engine: Engine = kind(program, store, EngineOptions(lanes=LANES, **options))  # type: ignore[arg-type]
    return engine


@pytest.mark.parametrize("kind", [InlineEngine, ThreadsEngine])
def test_everything_is_done_in_an_order_that_the_reads_allow(kind: type) -> None:
    program, store = Toy(), Store()
    events: list[Event] = []
    engine = start(kind, program, store, sink=events.append)
    engine.submit(WORK)
    engine.settle()
    assert sorted(program.done) == sorted(a.label for _, a in WORK)
    assert program.done.index("F2.0") < program.done.index("B1.0")
    assert store.version("W1") == 1
    assert {e.name: e.data["reads"] for e in events if e.name == "B1.1"} == {"B1.1": {"W1": 1}}
    assert all(e.end >= e.start for e in events)
    engine.close()


def test_inline_keeps_program_order() -> None:
    program = Toy()
    start(InlineEngine, program, Store()).submit(WORK)
    assert program.done == [a.label for _, a in WORK]


def test_threads_really_are_the_lanes_and_end_with_close() -> None:
    program = Toy()
    engine = start(ThreadsEngine, program, Store())
    engine.submit(WORK)
    engine.settle()
    engine.close()
    engine.close()
    assert {"convoy worker 1", "convoy worker 2"} <= program.threads
    assert not [t for t in threading.enumerate() if t.name.startswith("convoy ")]


@pytest.mark.parametrize("seed", range(5))
def test_delays_change_nothing(seed: int) -> None:
    program, store = Toy(), Store()

    def disturb(lane: str, action: Action) -> None:
        time.sleep((hash((lane, action.label, seed)) % 7) / 2000)

    engine = start(ThreadsEngine, program, store, disturb=disturb)
    engine.submit(WORK)
    engine.settle()
    by_lane = {lane: [a.label for a in WORK.lane(lane)] for lane in LANES}
    for labels in by_lane.values():
        assert [label for label in program.done if label in labels] == labels
    engine.close()


def test_a_worker_that_raises_stops_the_run_with_the_cell_marked() -> None:
    def disturb(lane: str, action: Action) -> None:
        if action.label == "F2.1":
            raise ValueError("bad weather")

    engine = start(ThreadsEngine, Toy(), Store(), disturb=disturb)
    began = time.perf_counter()
    with pytest.raises(WorkerFailed, match=r"worker 2 failed in the forward of batch 1 at stage 2: .*bad weather") as e:
        engine.submit(WORK)
        engine.settle()
    assert time.perf_counter() - began < 1.0
    assert ">F2.1<" in e.value.grid
    assert isinstance(e.value.__cause__, ValueError)
    engine.close()
    with pytest.raises(WorkerFailed):
        engine.settle()


def test_a_convoy_error_of_a_worker_reaches_the_caller_as_it_is() -> None:
    def disturb(lane: str, action: Action) -> None:
        if action.label == "F2.1":
            raise InternalError("a version out of order")

    engine = start(ThreadsEngine, Toy(), Store(), disturb=disturb)
    for _ in range(2):
        with pytest.raises(InternalError, match="out of order") as e:
            engine.submit(WORK)
            engine.settle()
        assert e.value.__notes__ == ["worker 2, in the forward of batch 1 at stage 2"]
    engine.close()


def test_the_watchdog_says_who_waits_for_what() -> None:
    release = threading.Event()

    def disturb(lane: str, action: Action) -> None:
        if action.label == "F2.0":
            release.wait(10)

    engine = start(ThreadsEngine, Toy(), Store(), disturb=disturb, watchdog_seconds=0.3)
    with pytest.raises(Stalled, match=r"worker 1 waits for g2>1@0 to start B1.0, worker 2 is busy with F2.0"):
        engine.submit(WORK)
        engine.settle()
    release.set()
    engine.close()


def failing(label: str) -> Callable[[str, Action], None]:
    def disturb(lane: str, action: Action) -> None:
        if action.label == label:
            raise ValueError("bad weather")

    return disturb


def test_inline_fails_as_threads_do_and_stays_failed() -> None:
    engine = start(InlineEngine, Toy(), Store(), disturb=failing("F2.1"))
    for _ in range(2):
        with pytest.raises(WorkerFailed, match=r"worker 2 failed in the forward of batch 1 at stage 2: .*bad wea") as e:
            engine.submit(WORK)
        assert ">F2.1<" in e.value.grid
    with pytest.raises(WorkerFailed):
        engine.settle()


def test_what_was_done_before_a_failure_stays_readable() -> None:
    engine = start(ThreadsEngine, Toy(), Store(), disturb=failing("F2.1"))
    engine.submit(WORK)
    with pytest.raises(WorkerFailed):
        engine.settle()
    engine.wait(next(a for _, a in WORK if a.label == "F2.0"))
    with pytest.raises(WorkerFailed):
        engine.wait(next(a for _, a in WORK if a.label == "F2.1"))
    engine.close()


@pytest.mark.parametrize("kind", [InlineEngine, ThreadsEngine])
def test_a_closed_engine_says_so_at_once(kind: type) -> None:
    engine = start(kind, Toy(), Store())
    engine.close()
    with pytest.raises(RunError, match="stopped before"):
        engine.submit(WORK)


def test_waiting_for_what_will_never_be_done_raises_at_once() -> None:
    release = threading.Event()
    engine = start(ThreadsEngine, Toy(), Store(), disturb=lambda lane, action: release.wait(5) and None)
    engine.submit(WORK)
    threading.Timer(0.1, release.set).start()
    engine.abandon()
    began = time.perf_counter()
    with pytest.raises(RunError, match="stopped before"):
        engine.settle()
    assert time.perf_counter() - began < 1.0
    engine.close()


def test_the_watchdog_does_not_count_pauses_of_the_driver() -> None:
    def disturb(lane: str, action: Action) -> None:
        if action.label == "F1.0":
            time.sleep(0.6)  # longer than the driver polls, shorter than the watchdog

    engine = start(ThreadsEngine, Toy(), Store(), disturb=disturb, watchdog_seconds=1.2)
    time.sleep(0.9)
    engine.submit(WORK)
    engine.settle()
    engine.close()


@pytest.mark.parametrize("kind", [InlineEngine, ThreadsEngine])
def test_a_late_failure_is_drawn_with_its_neighbourhood(kind: type) -> None:
    entries = [
        Schedule.parse(f"worker 1 | F 1 {t}.0 : W1@{t} => \nworker 1 | U 1 {t}.0 : W1@{t} => W1@{t + 1}")
        for t in range(400)
    ]
    engine = start(kind, Toy(), Store(), disturb=failing("F1.300"))
    with pytest.raises(WorkerFailed) as e:
        for pair in entries:
            engine.submit(pair)
        engine.settle()
    row = e.value.grid.splitlines()[1].split()[2:]
    assert row[:5] == [*(f"F1.{t}" for t in range(296, 300)), ">F1.300<"] and len(row) <= 9
    engine.close()


def test_a_state_may_begin_at_a_later_version() -> None:
    store = Store()
    engine = start(ThreadsEngine, Toy(), store, versions={"W1": 5})
    engine.submit(Schedule.parse("worker 1 | U 1 0.0 : W1@5 => W1@6"))
    engine.settle()
    assert store.version("W1") == 6
    engine.close()


class TestStore:
    def test_values_are_written_once_and_read_once(self) -> None:
        store, ref = Store(), Ref("x", 0)
        store.put(ref, 1)
        with pytest.raises(InternalError, match="written twice"):
            store.put(ref, 2)
        assert store.take(ref) == 1
        with pytest.raises(InternalError, match="read before"):
            store.take(ref)

    def test_versions_go_up_by_one(self) -> None:
        store = Store()
        with pytest.raises(InternalError):
            store.advance(Ref("W", 2))
        store.advance(Ref("W", 1))
        assert store.version("W") == 1
