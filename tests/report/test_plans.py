import json

import pytest

from convoy.report import plans
from convoy.report.files import read_run


def rows(run):
    ((plan, epochs),) = plans.plans(run)
    return {what: (predicted, measured, unit) for what, predicted, measured, unit in plans.compared(run, plan, epochs)}


def test_what_was_predicted_stands_beside_what_was_measured(folder):
    found = rows(read_run(folder.trained().write()))
    # The second epoch: 0.2 s for 20 mini-batches of 32.
    assert found["time of a step"] == (8.0, pytest.approx(10.0), "ms")
    assert found["throughput"] == (4000.0, pytest.approx(3200.0), "samples/s")
    assert found["speed-up over one worker"] == (1.875, pytest.approx(1.5), "×")
    assert found["forward of stage 1"] == (3.0, pytest.approx(3.0), "ms")
    assert found["backward of stage 2"] == (4.0, pytest.approx(3.0), "ms")
    assert found["worker 1 at work"] == (pytest.approx(87.5), pytest.approx(80.0), "%")


def test_the_ratio_is_measured_over_predicted():
    assert plans.ratio(("step", 8.0, 10.0, "ms")) == "1.25"
    assert plans.ratio(("step", None, 10.0, "ms")) == plans.ratio(("step", 8.0, None, "ms")) == "–"


def test_a_first_epoch_alone_is_better_than_nothing(folder):
    assert rows(read_run(folder.trained(1).write()))["time of a step"][1] == pytest.approx(20.0)


def test_memory_counts_what_is_held_at_once(folder):
    assert plans.memory_rows(folder.plan) == [
        ("stage 1", 3_000_000, 6_000_000, 500_000),
        ("stage 2", 9_000_000, 1_000_000, 0),
    ]
    assert plans.memory_rows({**folder.plan, "accumulate": 2})[0][2] == 3_000_000


def test_memory_counts_what_the_optimizer_keeps(folder):
    adam = [{**stage, "training_bytes": 3 * stage["weight_bytes"]} for stage in folder.plan["stages"]]
    assert [row[1] for row in plans.memory_rows({**folder.plan, "stages": adam})] == [4_000_000, 12_000_000]


def test_the_plans_of_a_hybrid_have_their_own_epochs(folder):
    folder.trained()
    folder.tell("plan", "sequential", 5.0, data={"strategy": "sequential"})
    run = read_run(folder.epoch(3).write())
    assert [(plan["strategy"], epochs) for plan, epochs in plans.plans(run)] == [
        ("pipelined", {1, 2}),
        ("sequential", {3}),
    ]
    # The third epoch has no mini-batches in these events, so nothing is said about its steps.
    assert plans.seconds_per_step(run, {3}) is None


def test_plan_json_stands_in_for_plans_told(folder):
    path = folder.trained().write()
    (path / "events.jsonl").unlink()
    assert rows(read_run(path))["time of a step"] == (8.0, pytest.approx(10.0), "ms")
    hybrid = {"strategy": "hybrid", "first": folder.plan, "then": None}
    (path / "plan.json").write_text(json.dumps(hybrid))
    assert plans.plans(read_run(path)) == [(folder.plan, {1, 2})]
