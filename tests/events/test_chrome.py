import gzip
import itertools
import json

from hypothesis import given
from hypothesis import strategies as st

from convoy.events.chrome import ChromeTrace
from convoy.events.event import Event


def load(path):
    with gzip.open(path, "rt") as file:
        return json.load(file)


def slices_by_thread(rows):
    threads = {}
    for row in rows:
        if row["ph"] == "X":
            begin = round(row["ts"] * 1000)
            threads.setdefault(row["tid"], []).append((begin, begin + round(row["dur"] * 1000)))
    return threads


def assert_no_overlap(rows):
    for slices in slices_by_thread(rows).values():
        slices.sort()
        for (_, end), (begin, _) in itertools.pairwise(slices):
            assert end <= begin


def thread_names(rows):
    return {row["tid"]: row["args"]["name"] for row in rows if row["name"] == "thread_name"}


def test_lanes_are_named_threads_and_times_are_microseconds(tmp_path):
    trace = ChromeTrace(tmp_path / "t.json.gz")
    data = {"kind": "F", "subject": "1", "reads": {"W1": 4}, "bytes": 12}
    trace(Event("action", "F1.2", 0.001, 0.0015, "worker 1", 2, data))
    trace(Event("action", "B2.0", 0.002, 0.003, "worker 2", 0, {"kind": "B"}))
    trace(Event("decision", "drain", 0.004, batch=3, data={"reason": "validation"}))
    trace(Event("step", "step", 0.0, 0.005, batch=1, data={"loss": float("nan")}))
    trace.close()
    trace.close()
    rows = load(tmp_path / "t.json.gz")
    assert thread_names(rows) == {0: "driver", 1: "worker 1", 2: "worker 2"}
    forward, backward = (row for row in rows if row["ph"] == "X")
    assert [forward[key] for key in ("name", "cat", "ts", "dur", "tid")] == ["F1.2", "F", 1000, 500, 1]
    assert forward["args"] == {"batch": 2, **data}
    assert backward["tid"] == 2
    (decision,) = (row for row in rows if row["ph"] == "i")
    assert (decision["name"], decision["ts"], decision["tid"], decision["args"]) == (
        "drain",
        4000,
        0,
        {"reason": "validation"},
    )
    (loss,) = (row for row in rows if row["ph"] == "C")
    assert loss["args"] == {"loss": None}


def test_touching_actions_stay_on_one_thread(tmp_path):
    trace = ChromeTrace(tmp_path / "t.json.gz")
    times = [i * 0.1 + 1 / 3 for i in range(100)]
    for begin, end in itertools.pairwise(times):
        trace(Event("action", "F", begin, end, "worker 1", 0))
    trace.close()
    rows = load(tmp_path / "t.json.gz")
    assert list(slices_by_thread(rows)) == [1]
    assert_no_overlap(rows)


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 3), st.sampled_from("ab")), max_size=40))
def test_a_pool_is_spread_so_that_no_thread_has_crossing_slices(tmp_path_factory, actions):
    path = tmp_path_factory.mktemp("trace") / "t.json.gz"
    trace = ChromeTrace(path)
    for begin, length, lane in sorted(actions):
        trace(Event("action", "F", begin, begin + length, lane, 0))
    trace.close()
    rows = load(path)
    assert_no_overlap(rows)
    names = thread_names(rows)
    assert len(set(names.values())) == len(names)
    used = [names[tid].split(" (")[0] for tid, slices in slices_by_thread(rows).items() for _ in slices]
    assert sorted(used) == sorted(lane for _, _, lane in actions)


def test_the_drivers_own_actions_go_to_its_thread(tmp_path):
    trace = ChromeTrace(tmp_path / "t.json.gz")
    trace(Event("action", "I.0", 0.1, 0.2, "driver", 0))
    trace.close()
    rows = load(tmp_path / "t.json.gz")
    assert thread_names(rows) == {0: "driver"} and list(slices_by_thread(rows)) == [0]
