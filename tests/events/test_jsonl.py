import errno
import json
import threading

import pytest

from convoy.events.event import Event
from convoy.events.jsonl import JsonLines, read_lines


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_are_held_back_until_a_second_has_passed(tmp_path):
    now = [0.0]
    sink = JsonLines(tmp_path / "e.jsonl", clock=lambda: now[0])
    sink(Event("run", "begin"))
    now[0] = 0.9
    sink(Event("run", "middle"))
    assert (tmp_path / "e.jsonl").read_text() == ""
    now[0] = 1.0
    sink(Event("run", "late"))
    assert [r["name"] for r in rows(tmp_path / "e.jsonl")] == ["begin", "middle", "late"]
    sink.close()


def test_close_writes_the_rest_and_may_be_called_twice(tmp_path):
    sink = JsonLines(tmp_path / "e.jsonl")
    sink(Event("step", "step", 1.0, 2.5, "worker 1", 3, {"loss": 0.5, "t": (1, 2)}))
    sink.close()
    sink.close()
    sink(Event("run", "after"))
    sink.flush()
    assert rows(tmp_path / "e.jsonl") == [
        {
            "kind": "step",
            "name": "step",
            "start": 1.0,
            "end": 2.5,
            "lane": "worker 1",
            "batch": 3,
            "data": {"loss": 0.5, "t": [1, 2]},
        }
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_json_lacks_become_null(tmp_path, value):
    sink = JsonLines(tmp_path / "e.jsonl")
    sink(Event("step", "step", data={"loss": value, "deep": {"list": [value]}}))
    sink.close()

    def refuse(text):
        raise AssertionError(text)

    row = json.loads((tmp_path / "e.jsonl").read_text(), parse_constant=refuse)
    assert row["data"] == {"loss": None, "deep": {"list": [None]}}


def test_a_torn_last_line_is_ended_and_passed_over(tmp_path):
    path = tmp_path / "e.jsonl"
    path.write_text('{"a":1}\n{"b":')
    sink = JsonLines(path)
    sink(Event("run", "again"))
    sink.close()
    read = list(read_lines(path.read_text().splitlines()))
    assert [r.get("name", r.get("a")) for r in read] == [1, "again"]


def test_a_row_of_none_leaves_the_event_out(tmp_path):
    sink = JsonLines(tmp_path / "e.jsonl", row=lambda e: {"n": e.name} if e.kind == "step" else None)
    sink(Event("run", "begin"))
    sink(Event("step", "s"))
    sink.close()
    assert rows(tmp_path / "e.jsonl") == [{"n": "s"}]


def test_a_full_disk_is_kept_for_the_driver_and_does_not_raise(tmp_path):
    sink = JsonLines(tmp_path / "e.jsonl", flush_seconds=0)
    sink.close()
    (tmp_path / "e.jsonl").unlink()
    (tmp_path / "e.jsonl").symlink_to("/dev/full")
    sink = JsonLines(tmp_path / "e.jsonl", flush_seconds=0)
    sink(Event("run", "begin"))
    assert sink.error is not None and sink.error.errno == errno.ENOSPC
    sink(Event("run", "more"))
    sink.close()


def test_lines_from_many_threads_stay_whole(tmp_path):
    sink = JsonLines(tmp_path / "e.jsonl", flush_seconds=0)

    def write(lane):
        for i in range(100):
            sink(Event("action", f"F{i}", lane=lane, batch=i))

    threads = [threading.Thread(target=write, args=(f"worker {n}",)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    sink.close()
    by_lane = {}
    for row in rows(tmp_path / "e.jsonl"):
        by_lane.setdefault(row["lane"], []).append(row["batch"])
    assert by_lane == {f"worker {n}": list(range(100)) for n in range(4)}
