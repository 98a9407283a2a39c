from convoy.events.event import Event
from convoy.events.window import Window


def action(lane, batch, seconds=1.0, moved=10):
    return Event("action", f"F1.{batch}", 0.0, seconds, lane, batch, {"bytes": moved})


def test_the_first_actions_of_each_lane_pass_then_every_nth_batch():
    seen = []
    window = Window(seen.append, first=2, every=5)
    for batch in range(1, 12):
        for lane in ("a", "b"):
            window(action(lane, batch))
    assert [(e.lane, e.batch) for e in seen if e.lane == "a"] == [("a", b) for b in (1, 2, 5, 10)]
    assert [e.batch for e in seen if e.lane == "b"] == [1, 2, 5, 10]


def test_a_trace_passes_all():
    seen = []
    window = Window(seen.append, trace=True, first=0, every=1000)
    for batch in range(1, 50):
        window(action("a", batch))
    assert [e.batch for e in seen] == list(range(1, 50))


def test_a_step_carries_the_sums_of_the_actions_since_the_last_step():
    seen = []
    window = Window(seen.append, first=0, every=1000)
    window(action("a", 1, 0.25, 3))
    window(action("a", 1, 0.5, 4))
    window(action("b", 1, 2.0, 5))
    window(Event("step", "step", batch=1, data={"loss": 1.0}))
    window(action("b", 2, 1.0, 1))
    window(Event("step", "step", batch=2, data={"loss": 2.0}))
    window(Event("step", "step", batch=3, data={"loss": 3.0}))
    assert seen[0].data == {
        "loss": 1.0,
        "lanes": {
            "a": {"actions": 2, "seconds": 0.75, "bytes": 7},
            "b": {"actions": 1, "seconds": 2.0, "bytes": 5},
        },
    }
    assert seen[1].data["lanes"] == {"b": {"actions": 1, "seconds": 1.0, "bytes": 1}}
    assert "lanes" not in seen[2].data


def test_decisions_and_the_rest_always_pass():
    seen = []
    window = Window(seen.append, first=0, every=1000)
    for kind in ("run", "plan", "decision", "epoch", "warning"):
        window(Event(kind, kind, batch=7))
    assert [e.kind for e in seen] == ["run", "plan", "decision", "epoch", "warning"]
