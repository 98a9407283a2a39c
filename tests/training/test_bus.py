import threading
import time

from convoy.events.event import Event
from convoy.schedule.decision import Decision
from convoy.training.bus import Bus


def test_times_of_the_strategy_are_counted_from_the_begin_of_the_run():
    seen = []
    bus = Bus([seen.append])
    now = time.perf_counter()
    bus.from_step(Event("action", "F1.0", now, now + 0.5, "worker 1", 0, {"bytes": 3}))
    bus.from_step(Event("warning", "w"))
    assert 0 <= seen[0].start < 0.2 and abs(seen[0].end - seen[0].start - 0.5) < 1e-9
    assert (seen[0].name, seen[0].lane, seen[0].batch, seen[0].data) == ("F1.0", "worker 1", 0, {"bytes": 3})
    assert 0 <= seen[1].start == seen[1].end <= bus.now()
    assert bus.busy.take(1.0) == {"worker 1": seen[0].end - seen[0].start}


def test_callbacks_run_in_the_drivers_thread_in_order():
    threads, names, sinks = set(), [], []

    def callback(event):
        threads.add(threading.current_thread())
        names.append(event.name)

    bus = Bus([lambda e: sinks.append(threading.current_thread())], [callback])
    worker = threading.Thread(target=lambda: bus.from_step(Event("action", "F", 1.0, 2.0)))
    worker.start()
    worker.join()
    assert names == [] and sinks == [worker]
    bus.emit("step", "step", {})
    assert names == ["F", "step"] and threads == {threading.current_thread()}


def test_an_event_that_a_callback_makes_comes_after():
    names = []

    def callback(event):
        names.append(event.name)
        if event.name == "first":
            bus.emit("warning", "inner", {})
            names.append("end of first")

    bus = Bus([], [callback])
    bus.emit("step", "first", {})
    assert names == ["first", "end of first", "inner"]


def test_a_decision_is_an_event_with_cause_and_content():
    seen = []
    Bus([seen.append]).decide(Decision("drain", 7, "user", {"reason": "validation"}))
    (event,) = seen
    assert (event.kind, event.name, event.batch) == ("decision", "drain", 7)
    assert event.data == {"cause": "user", "reason": "validation"}
