import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.report import curves
from convoy.report.files import read_run


def line(chart, name):
    (found,) = [line for line in chart.lines if line.name == name]
    return list(zip(found.x, found.y, strict=True))


def test_accuracy_stands_over_the_time_of_training_alone(folder):
    run = read_run(folder.trained().write())
    assert line(curves.accuracy_over_time(run), "validation") == [
        (0.4, 0.9), (pytest.approx(0.6), pytest.approx(0.91)),
    ]  # fmt: skip
    assert line(curves.accuracy_over_epochs(run), "validation") == [(1, 0.9), (2, pytest.approx(0.91))]
    assert line(curves.loss_over_epochs(run), "training") == [(1, 1.0), (2, 0.5)]


def test_without_validation_only_training_is_drawn(folder):
    folder.begin().epoch(1, None)
    folder.events[-1]["data"]["validation_loss"] = None
    run = read_run(folder.write())
    assert [one.name for one in curves.accuracy_over_epochs(run).lines] == ["training"]


def test_throughput_within_epochs_does_not_count_the_pause_between(folder):
    folder.begin()
    for number in range(40):
        folder.batch(number)
    for row in folder.events[:]:
        if row["kind"] == "step" and row["batch"] >= 20:  # validation took a second
            row["end"] += 1
    chart = curves.throughput(read_run(folder.epoch(1).epoch(2).write()))
    assert line(chart, "whole epoch") == [(1, 3200.0), (2, 3200.0)]
    within = line(chart, "within the epoch")
    assert [speed for _, speed in within] == [pytest.approx(3200)] * 4  # two pieces of 20 steps each
    assert all(0 < x < 2 for x, _ in within)


def test_utilisation_leaves_the_driver_out(folder):
    chart = curves.utilisation(read_run(folder.trained().write()))
    assert [one.name for one in chart.lines] == ["worker 1", "worker 2"]
    assert line(chart, "worker 2") == [(1, 0.6), (2, 0.6)]


def test_a_switch_is_marked_between_its_epochs(folder):
    folder.begin().epoch(1)
    folder.tell("decision", "switch", 2.0, batch=20, data={"from": "pipelined", "to": "sequential", "epoch": 2})
    assert curves.switches(read_run(folder.write())) == ((1.5, "switch from pipelined to sequential"),)


def test_what_a_strategy_reports_beside_is_drawn(folder):
    folder.trained()
    for row in folder.events:
        if row["kind"] == "step":
            row["data"] |= {"accepted_share": 0.25, "round_trip": {"node 1": 3.0, "node 2": "late"}, "note": "x"}
    folder.events[-1]["data"]["quality"] = 7
    charts = {chart.title: chart for chart in curves.others(read_run(folder.write()))}
    assert sorted(charts) == ["Accepted share", "Quality", "Round trip node 1"]
    assert charts["Accepted share"].percent and not charts["Quality"].percent


@given(st.lists(st.one_of(st.none(), st.floats(-1e3, 1e3)), max_size=5000))
def test_thinned_curves_are_short_and_keep_the_mean(values):
    x, y = curves.thinned(list(range(len(values))), values)
    assert len(x) == len(y) <= curves.MOST_POINTS
    assert list(x) == sorted(x)
    assert not values or x[-1] == len(values) - 1
    known = [v for v in values if v is not None]
    kept = [v for v in y if v is not None]
    assert bool(known) == bool(kept)
    if known:
        assert min(known) - 1e-6 <= min(kept) and max(kept) <= max(known) + 1e-6
    if len(values) <= curves.MOST_POINTS:
        assert list(y) == values


def test_epochs_in_which_training_began_do_not_count_where_there_are_others():
    rows = [{"epoch": 1, "began": True}, {"epoch": 2, "began": False}, {"epoch": 3, "began": False}]
    assert curves.settled([9.0, None, 2.0], rows) == [2.0]
    assert curves.settled([9.0, 1.0, 8.0], [*rows[:2], {"epoch": 3, "began": True}]) == [1.0]  # resumed
    assert curves.settled([9.0, 1.0], [{"epoch": 1}, {"epoch": 2}]) == [1.0]  # an older file
    assert curves.settled([None, 9.0], rows[:2]) == [9.0]
    assert curves.settled([9.0], rows[:1]) == [9.0]
    assert curves.settled([], []) == []


def test_decisions_that_are_made_again_and_again_are_curves(folder):
    folder.trained()
    for batch in range(30):
        data = {"cause": "data", "accepted": batch / 30, "samples": 32, "set": "a1", "constant": 1}
        folder.tell("decision", "accept", 2.0, batch=batch, data=data)
    folder.tell("decision", "speculation", 2.0, batch=3, data={"cause": "data", "agreement": 0.9})
    run = read_run(folder.write())
    (chart,) = curves.decided(run)
    assert chart.title == "Accept: accepted" and chart.percent
    assert line(chart, "accept: accepted")[15] == (15, 0.5)
    assert curves.often(run) == ["accept"]
