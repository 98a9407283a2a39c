import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convoy.errors import CheckpointError
from convoy.report.files import FILES, read_run
from convoy.report.run_page import report_run


def test_a_whole_folder_is_read_without_complaint(folder):
    run = read_run(folder.trained().end().write())
    assert run.problems == []
    assert [row["epoch"] for row in run.epochs] == [1, 2]
    assert len(run.steps) == 40 and run.steps[3]["loss"] == 0.5
    assert run.config["stages"] == 2 and run.environment["cores"] == 2
    assert [(plan["strategy"], epochs) for plan, epochs in run.plans] == [("pipelined", {1, 2})]
    assert {action.lane for action in run.actions} == {"driver", "worker 1", "worker 2"}
    assert run.seconds == 9.0


def test_no_folder_and_an_empty_one_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is no run folder"):
        read_run(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="holds no file of a run"):
        read_run(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_with_any_one_file_alone_there_is_a_page(folder, name):
    path = folder.trained().end().write()
    for other in FILES:
        if other != name:
            (path / other).unlink()
    run = read_run(path)
    missing = {problem.split()[0] for problem in run.problems}
    assert missing >= {*FILES} - {name, "metrics.jsonl", "events.jsonl"}
    assert all(problem.endswith("is missing") for problem in run.problems)
    assert "</html>" in report_run(path)


@pytest.mark.parametrize("name", FILES)
def test_with_any_one_file_gone_or_damaged_there_is_a_page(folder, name):
    path = folder.trained().end().write()
    (path / name).write_bytes(b'{"kind": \xff\x00 [[\n{"a": 1}\n[1]\nnull\n')
    run = read_run(path)
    assert len([problem for problem in run.problems if problem.startswith(name)]) == 1, run.problems
    assert "\n" not in "".join(run.problems)
    assert "</html>" in report_run(path)
    (path / name).unlink()
    assert "</html>" in report_run(path)


def test_metrics_stand_in_for_events_and_the_other_way_round(folder):
    path = folder.trained().end().write()
    whole = read_run(path)
    (path / "metrics.jsonl").unlink()
    without = read_run(path)
    assert without.problems == [] and without.epochs == whole.epochs
    path = folder.write()
    (path / "events.jsonl").unlink()
    run = read_run(path)
    assert run.problems == ["events.jsonl is missing"]
    assert [row["train_loss"] for row in run.epochs] == [1.0, 0.5] and len(run.steps) == 40


def test_the_torn_last_line_of_a_killed_run_is_no_damage(folder):
    path = folder.trained().write()
    with (path / "events.jsonl").open("a") as file:
        file.write('{"kind": "step", "na')
    assert read_run(path).problems == ["events.jsonl: the last line was not finished"]


def test_what_was_trained_twice_after_a_kill_counts_once(folder):
    folder.trained(1).batch(20).batch(21)
    folder.tell("run", "begin", 0.0, data={"resumed_from": 20})
    folder.batch(20).batch(21).batch(22).epoch(1, 0.5).epoch(2, 0.7)
    run = read_run(folder.write())
    assert [row["batch"] for row in run.steps] == list(range(23))
    assert [row["validation_accuracy"] for row in run.epochs] == [0.5, 0.7]


def test_epochs_belong_to_the_plan_that_was_in_force(folder):
    folder.begin().epoch(1).epoch(2)
    folder.tell("plan", "sequential", 5.0, data={"strategy": "sequential"})
    folder.tell("plan", "sequential", 5.0, data={"strategy": "sequential"})
    run = read_run(folder.epoch(3).write())
    assert [(plan["strategy"], epochs) for plan, epochs in run.plans] == [("pipelined", {1, 2}), ("sequential", {3})]


def test_an_epoch_that_was_trained_again_belongs_to_the_later_plan(folder):
    folder.begin().epoch(1).epoch(2)
    folder.tell("plan", "sequential", 5.0, data={"strategy": "sequential"})
    run = read_run(folder.epoch(2).write())
    assert [epochs for _, epochs in run.plans] == [{1}, {2}]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**6) | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    ["epoch", "loss", "samples", "lr", "busy", "reads", "writes", "kind", "stages", "seconds", "status", "train_loss",
     "validation_accuracy", "from", "step_seconds", "batch_size", "samples_per_second"]
)  # fmt: skip
ROWS = st.fixed_dictionaries(
    {"kind": st.sampled_from(["run", "plan", "action", "decision", "step", "epoch", "warning", "other"]) | JSON},
    optional={
        "name": st.sampled_from(["begin", "end", "switch", "drain"]) | JSON, "start": JSON, "end": JSON, "lane": JSON,
        "batch": JSON, "data": st.dictionaries(KEYS, JSON, max_size=6) | JSON,
    },
)  # fmt: skip


@settings(max_examples=40)
@given(st.lists(ROWS, max_size=12), st.dictionaries(KEYS, JSON, max_size=4), JSON)
def test_whatever_stands_in_the_files_there_is_a_page(tmp_path_factory, rows, plan, environment):
    path = tmp_path_factory.mktemp("odd")
    (path / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "plan.json").write_text(json.dumps(plan))
    (path / "environment.json").write_text(json.dumps(environment))
    assert "</html>" in report_run(path)
