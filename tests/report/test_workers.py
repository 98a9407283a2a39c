import pytest

from convoy.report.files import Action, read_run
from convoy.report.workers import (
    action_seconds,
    complete_batches,
    mean_staleness,
    shown_batches,
    staleness,
    stalenesses,
    timeline,
)


def action(batch, kind="F", lane="w", start=0.0, end=1.0, reads=None, writes=None):
    return Action(kind, "1", f"{kind}1.{batch}", lane, batch, 0, start, end, reads or {}, writes or {})


def whole(*batches):
    return [action(batch, kind) for batch in batches for kind in "FBU"]


def test_mini_batches_that_the_sample_cut_are_not_complete():
    actions = [*whole(0, 1, 2, 3), action(4), *whole(50), *whole(100)]
    assert complete_batches(actions) == [[0, 1, 2, 3], [50], [100]]


def test_what_the_driver_does_says_nothing_about_completeness():
    assert complete_batches([*whole(0, 1), *(action(batch, "E", "driver") for batch in range(9))]) == [[0, 1]]


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        ([], []),
        ([0, 50, 100], [100]),  # only single ones: the last, since the first is cold
        ([0, 1, 2, 50], [0, 1, 2]),
        (range(21), [14, 15, 16, 17, 18]),  # later ones of those that begin a run
        (range(300), [200, 201, 202, 203, 204]),
        (range(6), [1, 2, 3, 4, 5]),
    ],
)
def test_the_steps_that_are_drawn(batches, expected):
    assert shown_batches(whole(*batches)) == expected


def test_the_timeline_shows_neighbours_and_waits(folder):
    lanes = timeline(read_run(folder.trained().write()))
    assert lanes.lanes() == ["worker 1", "worker 2"]
    assert lanes.title == "Timeline of mini-batches 4 to 8"
    assert lanes.end - lanes.start == pytest.approx(4 * 0.01 + 0.009)
    # Per mini-batch of 10 ms, worker 1 works 3 + 4 + 1 ms and worker 2 works 2 + 3 + 1 ms.
    assert lanes.busy("worker 1") == pytest.approx(5 * 8 / 49)
    assert lanes.busy("worker 2") == pytest.approx(5 * 6 / 49)
    assert [meaning for _, meaning in lanes.families] == ["forward", "backward", "update"]


def test_a_resumed_clock_does_not_stretch_the_timeline(folder):
    folder.begin()
    for number in range(4):
        folder.batch(number)
    for row in folder.events:
        if row["kind"] == "action":
            row["start"] += 4000
            row["end"] += 4000
    for number in range(4):
        folder.batch(number)
    lanes = timeline(read_run(folder.write()))
    assert lanes.end - lanes.start < 1


def test_no_actions_make_no_timeline(folder):
    assert timeline(read_run(folder.begin().batch(0, actions=False).write())) is None


def test_staleness_is_what_was_updated_between_reading_and_writing():
    actions = [
        action(5, "F", reads={"W1": 3}),
        action(5, "F", reads={"W1": 4}),  # a later part of the mini-batch
        action(5, "U", reads={"W1": 5}, writes={"W1": 6}),
        action(6, "U", writes={"W1": 7}),  # its forward pass is not in the sample
    ]
    assert stalenesses(actions) == {"W1": [(5, 2)]}


def test_staleness_of_a_run(folder):
    run = read_run(folder.trained().write())
    rows = {name: (greatest, seen) for name, _, greatest, seen in mean_staleness(run)}
    assert rows == {"W1": (2, 12), "W2": (0, 12)}
    first, second = staleness(run).lines
    assert first.name == "weights of 1" and list(first.y)[:4] == [0, 1, 2, 2]
    assert set(second.y) == {0}


def test_weights_that_are_never_stale_are_not_drawn(folder):
    folder.begin()
    for number in range(4):
        folder.batch(number)
    for row in folder.events:
        if row["kind"] == "action" and row["data"]["kind"] == "F":
            row["data"]["reads"] = {name: row["batch"] for name in row["data"]["reads"]}
    run = read_run(folder.write())
    assert staleness(run).empty
    assert {row[2] for row in mean_staleness(run)} == {0}


def test_times_of_actions_are_medians_of_warm_mini_batches():
    actions = [action(0, end=9.0), *(action(b, end=0.1 * b) for b in (1, 2, 3)), action(3, end=0.7)]
    assert action_seconds_of(actions) == {("F", "1"): pytest.approx(0.2)}


def action_seconds_of(actions):
    class Run:
        pass

    run = Run()
    run.actions = actions
    return action_seconds(run)
