import json
import tomllib
from datetime import datetime

import pytest

from convoy.errors import CheckpointError, MachineError, OptionError
from convoy.events.event import Event
from convoy.training.run_dir import RunDirectory

NOW = datetime(2026, 1, 31, 14, 5, 9)


def make(tmp_path, **options):
    return RunDirectory.create(
        tmp_path / "runs", **{"model": "ResNet20", "strategy": "pipelined", "now": NOW, **options}
    )


def test_the_name_says_when_what_and_how_and_is_never_taken_twice(tmp_path):
    names = [make(tmp_path).path.name for _ in range(3)]
    base = "2026-01-31-140509-resnet20-pipelined"
    assert names == [base, f"{base}-2", f"{base}-3"]
    assert make(tmp_path, model="my.nets:Net/../x").path.name == "2026-01-31-140509-my-nets-net-x-pipelined"


def test_a_name_of_ones_own(tmp_path):
    assert make(tmp_path, name="first").path == tmp_path / "runs" / "first"
    with pytest.raises(OptionError, match="exists already"):
        make(tmp_path, name="first")
    for name in ("a/b", "..", ""):
        with pytest.raises(OptionError, match="is no folder name"):
            make(tmp_path, name=name)


def test_files_are_written_once(tmp_path):
    run = make(tmp_path)
    run.write_config({"epochs": 3, "strategy": {"name": "sequential"}})
    run.write_config({"epochs": 4})
    assert tomllib.loads((run.path / "config.toml").read_text()) == {"epochs": 3, "strategy": {"name": "sequential"}}
    run.write_plan({"stages": (1, 2)})
    run.write_plan({"stages": 3})
    assert json.loads((run.path / "plan.json").read_text()) == {"stages": [1, 2]}
    run.write_environment()
    environment = json.loads((run.path / "environment.json").read_text())
    assert environment["torch"] and environment["cores"] >= 1 and environment["threads"] >= 1
    assert sorted(p.name for p in run.path.iterdir()) == ["checkpoints", "config.toml", "environment.json", "plan.json"]


def step(batch, epoch=1, loss=0.5):
    return Event(
        "step",
        "step",
        1.0,
        2.0,
        batch=batch,
        data={"epoch": epoch, "loss": loss, "correct": 1, "samples": 2, "lr": 0.1},
    )


def epoch(number, batch, loss=0.5):
    return Event("epoch", f"epoch {number}", 2.0, batch=batch, data={"epoch": number, "train_loss": loss})


def test_metrics_of_a_resumed_run_stand_once(tmp_path):
    run = make(tmp_path)
    for events in (
        [Event("run", "begin", data={"resumed_from": None}), step(0), step(1), epoch(1, 1), step(2, 2), step(3, 2)],
        [Event("run", "begin", data={"resumed_from": 2}), step(2, 2, 0.25), epoch(2, 2), epoch(2, 2, 0.75)],
    ):
        sinks = run.event_sinks(trace=False)
        for event in events:
            for sink in sinks:
                sink(event)
        run.close()
        run.check()
    rows = run.read_metrics()
    assert [(r["batch"], r.get("loss"), r.get("train_loss")) for r in rows] == [
        (0, 0.5, None),
        (1, 0.5, None),
        (1, None, 0.5),
        (2, 0.25, None),
        (2, None, 0.75),
    ]
    assert rows[0] == {"batch": 0, "epoch": 1, "loss": 0.5, "correct": 1, "samples": 2, "lr": 0.1, "seconds": 2.0}
    assert len(run.events.read_text().splitlines()) == 10


def test_a_trace_is_written_when_asked_and_never_over_another(tmp_path):
    run = make(tmp_path)
    for _ in range(2):
        run.event_sinks(trace=True)
        run.close()
    assert {p.name for p in run.path.glob("trace*")} == {"trace.json.gz", "trace-2.json.gz"}


def test_open_finds_the_run_of_a_checkpoint(tmp_path):
    run = make(tmp_path)
    (run.checkpoints / "00000001").mkdir()
    assert RunDirectory.open(run.path).path == run.path
    assert RunDirectory.open(run.checkpoints / "00000001").path == run.path
    with pytest.raises(CheckpointError, match="is no run folder"):
        RunDirectory.open(tmp_path / "elsewhere" / "deep" / "down")


def test_a_parent_that_is_a_file(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(MachineError, match="cannot write"):
        make(tmp_path)


def test_a_full_disk_is_found_by_check(tmp_path):
    run = make(tmp_path)
    run.metrics.symlink_to("/dev/full")
    for sink in run.event_sinks(trace=False):
        sink(step(0))
    run.close()
    with pytest.raises(MachineError, match=r"metrics\.jsonl: the disk is full"):
        run.check()
