"""The pool: any worker takes any action, urgent ones first; order, failures, stalls, end."""

import random
import re
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convoy.engines.engine import EngineOptions
from convoy.engines.inline import InlineEngine
from convoy.engines.pool import PoolEngine
from convoy.engines.program import Store
from convoy.errors import InternalError, RunError, Stalled, WorkerFailed
from convoy.events.event import Event
from convoy.schedule.action import Action, Ref
from convoy.schedule.recurring import Recurring
from convoy.schedule.schedule import Schedule

STEP = Schedule.parse(
    """
    driver | E 0 0.0 : => x@0
    pool   | F 1 0.0 : W1@0 x@0 => y@0 s@0
    pool   | F 2 0.0 : W2@0 y@0 => r@0 z@0
    pool   | I 2 0.0 : W2@0 r@0 => d@0
    pool   | G 2 0.0 : z@0 => g2@0
    pool   | U 2 0.0 : W2@0 g2@0 => W2@1
    pool   | G 1 0.0 : s@0 d@0 => g1@0
    pool   | U 1 0.0 : W1@0 g1@0 => W1@1
    """
)
LANES = {"worker 1": 1, "worker 2": 1}


class Toy:
    """A value is the tree of labels that led to it; a state the list of what was done to it."""

    def __init__(self):
        self.done = []
        self.threads = set()
        self.values = {}
        self.states = {}
        self.lock = threading.Lock()

    def run(self, action, store):
        with self.lock:
            read = tuple(self.values[r] for r in action.reads if not r.is_state)
            read += tuple(tuple(self.states.get(r.name, ())) for r in action.reads if r.is_state)
            for ref in action.writes:
                if ref.is_state:
                    self.states.setdefault(ref.name, []).append((action.label, hash(read)))
                else:
                    self.values[ref] = hash((action.label, read))
            self.done.append(action.label)
            self.threads.add(threading.current_thread().name)
        return 0


def start(program=None, kind=PoolEngine, lanes=LANES, **options):
    return kind(program or Toy(), Store(), EngineOptions(lanes=lanes, **options))


def occurrence(batch=0):
    return Recurring(STEP).at(batch, {"W1": batch, "W2": batch})


@pytest.mark.parametrize("entries", [STEP, occurrence()], ids=["scoreboard", "compiled"])
def test_everything_is_done_in_an_order_that_the_reads_allow(entries):
    program, events = Toy(), []
    engine = start(program, sink=events.append)
    engine.submit(entries)
    engine.settle()
    place = {label: i for i, label in enumerate(program.done)}
    assert sorted(place) == sorted(a.label for _, a in STEP)
    for before, after in (("F1.0", "F2.0"), ("I2.0", "U2.0"), ("G2.0", "U2.0"), ("I2.0", "G1.0"), ("G1.0", "U1.0")):
        assert place[before] < place[after]
    assert {e.name: e.data["writes"] for e in events if e.name == "U1.0"} == {"U1.0": {"W1": 1}}
    assert {e.lane for e in events} <= {"driver", *LANES} and all(isinstance(e, Event) for e in events)
    assert all(engine.is_done(a) for _, a in entries)
    engine.close()


def test_compiled_and_other_entries_may_follow_each_other():
    program = Toy()
    engine = start(program)
    recurring = Recurring(STEP)
    engine.submit(recurring.at(0, {}))
    engine.submit([("pool", Action("U", "1", 9, 0, (Ref("W1", 1),), (Ref("W1", 2),)))])
    engine.submit(recurring.at(1, {"W1": 2, "W2": 1}))
    engine.settle()
    engine.submit(Schedule.parse("pool | U 1 10.0 : W1@3 => W1@4"))
    engine.settle()
    engine.close()
    assert len(program.done) == 18
    assert [label for label, _ in program.states["W1"]] == ["U1.0", "U1.9", "U1.1", "U1.10"]


@pytest.mark.parametrize("compiled", [True, False])
def test_the_urgent_go_first(compiled):
    """One worker, held until all five are ready."""
    gate = threading.Event()
    entries = Schedule.parse(
        "driver | E 0 0.0 : => x@0\n" + "\n".join(f"pool | F {i} 0.0 : x@0 => y{i}@0" for i in range(5))
    )
    recurring = Recurring(entries, [0.0, 9.0, 1.0, 3.0, 2.0, 5.0])
    program = Toy()
    engine = start(program, lanes={"worker 1": 1}, disturb=lambda lane, action: gate.wait(5) and None)
    engine.submit(recurring.at(0, {}) if compiled else entries)
    gate.set()
    engine.settle()
    assert program.done[1:] == [f"F{i}.0" for i in ([0, 4, 2, 3, 1] if compiled else range(5))]
    engine.close()


def test_ranks_come_from_what_the_actions_took():
    recurring = Recurring(STEP)
    engine = start(disturb=lambda lane, action: time.sleep(0.02 if action.label == "G1.0" else 0.001))
    engine.submit(recurring.at(0, {}))
    engine.settle()
    engine.close()
    recurring.rank()
    rank = {a.label: r for (_, a), r in zip(STEP, recurring.ranks, strict=True)}
    assert rank["G1.0"] >= 0.02 and rank["I2.0"] > rank["G1.0"] > rank["U1.0"] > 0
    assert rank["I2.0"] > rank["G2.0"] + 0.015  # the way to the update of 1 is longer than that of 2


def test_two_workers_work_at_the_same_time():
    meet = threading.Barrier(2)
    entries = Schedule.parse("driver | E 0 0.0 : => x@0\npool | F 1 0.0 : x@0 =>\npool | F 2 0.0 : x@0 =>")
    program = Toy()
    engine = start(program, disturb=lambda lane, action: meet.wait(5) and None)
    engine.submit(Recurring(entries).at(0, {}))
    engine.settle()
    engine.close()
    assert {"convoy worker 1", "convoy worker 2"} <= program.threads


@st.composite
def steps(draw):
    """Random actions over two states and a few values, in program order."""
    versions = {"A": 0, "B": 0}
    values = [Ref("x", 0)]
    actions = [("driver", Action("E", "0", 0, 0, (), (values[0],)))]
    for place in range(draw(st.integers(1, 12))):
        reads = [Ref(n, v) for n, v in versions.items() if draw(st.booleans())]
        reads += [v for v in values[-4:] if draw(st.booleans())]
        writes = [Ref(f"v{place}", 0)]
        for name in versions:
            if draw(st.integers(0, 3)) == 0:
                reads.append(Ref(name, versions[name]))
                versions[name] += 1
                writes.append(Ref(name, versions[name]))
        values.append(writes[0])
        actions.append(("pool", Action("K", str(place), 0, 0, tuple(dict.fromkeys(reads)), tuple(writes))))
    return actions


@settings(max_examples=40)
@given(steps(), st.integers(0, 2**30), st.booleans(), st.integers(1, 3))
def test_whatever_the_timing_results_are_those_of_one_thread(entries, seed, compiled, workers):
    delays = random.Random(seed)
    recurring = Recurring(entries, [delays.random() for _ in entries])
    results = []
    for kind in (InlineEngine, PoolEngine):
        program = Toy()
        lanes = {"pool": 1} if kind is InlineEngine else {f"worker {i}": 1 for i in range(workers)}
        disturb = None if kind is InlineEngine else lambda lane, action: time.sleep(delays.random() / 2000)
        engine = start(program, kind, lanes, disturb=disturb)
        for batch in range(2):
            moved = recurring.at(batch, {n: v * batch for n, v in recurring.advances.items()})
            engine.submit(moved if compiled else list(moved))
        engine.settle()
        engine.close()
        results.append((program.values, program.states))
    assert results[0] == results[1]


def failing(label, error):
    def disturb(lane, action):
        if action.label == label:
            raise error

    return disturb


@pytest.mark.parametrize("entries", [STEP, occurrence()], ids=["scoreboard", "compiled"])
def test_a_worker_that_raises_stops_the_run_with_the_cell_marked(entries):
    engine = start(disturb=failing("I2.0", ValueError("bad weather")))
    began = time.perf_counter()
    with pytest.raises(WorkerFailed, match=r"worker . failed in the input gradient of batch 0 at stage 2: .*bad") as e:
        engine.submit(entries)
        engine.settle()
    assert time.perf_counter() - began < 1.0
    assert ">I2.0<" in e.value.grid and isinstance(e.value.__cause__, ValueError)
    engine.close()
    with pytest.raises(WorkerFailed):
        engine.submit(occurrence(1))


def test_a_convoy_error_reaches_the_caller_as_it_is():
    engine = start(disturb=failing("G2.0", InternalError("a version out of order")))
    with pytest.raises(InternalError, match="out of order"):
        engine.submit(occurrence())
        engine.settle()
    engine.close()


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        (STEP, r"is busy with F2.0, I2.0 waits for r@0, G2.0 waits for z@0"),
        (occurrence(), r"nothing moved for .* s: worker . is busy with F2.0$"),
    ],
    ids=["scoreboard", "compiled"],
)
def test_the_watchdog_says_who_waits_for_what(entries, match):
    release = threading.Event()

    def disturb(lane, action):
        if action.label == "F2.0":
            release.wait(10)

    engine = start(disturb=disturb, watchdog_seconds=0.3)
    with pytest.raises(Stalled) as e:
        engine.submit(entries)
        engine.settle()
    assert re.search(match, e.value.message)
    release.set()
    engine.close()


def test_a_closed_pool_says_so_and_leaves_no_thread():
    engine = start()
    engine.close()
    engine.close()
    for entries in (STEP, occurrence()):
        with pytest.raises(RunError, match="stopped before"):
            engine.submit(entries)
    assert not [t for t in threading.enumerate() if t.name.startswith("convoy worker")]


def test_waiting_for_one_action():
    release = threading.Event()
    engine = start(disturb=lambda lane, action: action.label == "U1.0" and release.wait(5) and None)
    entries = occurrence()
    engine.submit(entries)
    by_label = {a.label: a for _, a in entries}
    engine.wait(by_label["U2.0"])
    assert engine.is_done(by_label["U2.0"]) and not engine.is_done(by_label["U1.0"])
    release.set()
    engine.settle()
    engine.close()


def test_waiting_for_what_will_never_be_done_raises_at_once():
    release = threading.Event()
    engine = start(disturb=lambda lane, action: release.wait(5) and None)
    engine.submit(occurrence())
    threading.Timer(0.1, release.set).start()
    engine.abandon()
    began = time.perf_counter()
    with pytest.raises(RunError, match="stopped before"):
        engine.settle()
    assert time.perf_counter() - began < 1.0
    engine.close()
