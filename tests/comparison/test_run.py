"""Comparisons as a whole: fair, without influence on each other, and not lost when something fails."""

import json
import random
import signal
import threading

import numpy as np
import pytest
import torch

from convoy import Pipelined, Sequential, Settings, Trainer
from convoy.comparison import Workload, compare
from convoy.comparison.run import read_comparison
from convoy.errors import CheckpointError, OptionError
from convoy.training.checkpoint import find_checkpoint

ENTRANTS = {"one": Sequential(), "two": Pipelined(cuts=("2",)), "three": "pipelined:cuts=4,clock=1f1b"}


def losses(outcome):
    return [(r.train_loss, r.validation_loss, r.validation_accuracy) for r in outcome.epochs]


def threads():
    return [t.name for t in threading.enumerate() if t.name.startswith("convoy compare") or t.name.startswith("worker")]


def alone(workload, strategy, seed, epochs, folder):
    """The same run with the process to itself."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    work = workload(seed)
    options = {"strategy": strategy, "settings": Settings(seed=seed), "run_dir": folder, "save_every": "epoch"}
    trainer = Trainer(work.model, work.loss, work.optimizer, scheduler=work.scheduler, **options)
    trainer.fit(work.train, work.validation, epochs=epochs)
    return trainer, work


def test_every_run_equals_one_that_had_the_process_to_itself(workload, tmp_path):
    found = compare(workload, ENTRANTS, epochs=3, seeds=2, directory=tmp_path / "c")
    assert found.finished and not found.failed
    for label, strategy in {
        "one": Sequential(),
        "two": ENTRANTS["two"],
        "three": Pipelined(cuts=("4",), clock="1f1b"),
    }.items():
        for seed in (0, 1):
            outcome = found.outcome(label, seed)
            trainer, work = alone(workload, strategy, seed, 3, tmp_path / "alone")
            assert losses(outcome) == losses(trainer.history)
            weights = find_checkpoint(tmp_path / "c" / outcome.path).model
            assert all(torch.equal(weights[name], value) for name, value in work.model.state_dict().items())
    assert not threads()


def test_turns_rotate_and_every_epoch_has_one(workload):
    found = compare(workload, ENTRANTS, epochs=3, seeds=2)
    assert [(t.seed, t.round, t.strategy) for t in found.turns] == [
        (0, 1, "one"), (0, 1, "two"), (0, 1, "three"),
        (0, 2, "two"), (0, 2, "three"), (0, 2, "one"),
        (0, 3, "three"), (0, 3, "one"), (0, 3, "two"),
        (1, 1, "two"), (1, 1, "three"), (1, 1, "one"),
        (1, 2, "three"), (1, 2, "one"), (1, 2, "two"),
        (1, 3, "one"), (1, 3, "two"), (1, 3, "three"),
    ]  # fmt: skip
    assert [t.place for t in found.turns] == [0, 1, 2] * 6


def test_the_callers_random_numbers_are_left_alone(workload):
    torch.manual_seed(5)
    before = torch.get_rng_state(), random.getstate()
    compare(workload, ["sequential", "pipelined:cuts=2"], epochs=1)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]


def test_a_strategy_that_fails_does_not_lose_the_others(workload, tmp_path):
    said = []

    def broken(output, target):
        if broken.calls == 3:
            raise RuntimeError("out of luck")
        broken.calls += 1
        return torch.nn.functional.cross_entropy(output, target)

    broken.calls = 0

    def work(seed):
        work.made += 1
        return workload(seed, loss=broken) if work.made == 2 else workload(seed)

    work.made = 0
    found = compare(work, ["sequential", "pipelined:cuts=2"], epochs=2, directory=tmp_path, progress=said.append)
    assert [(o.strategy, o.status, len(o.epochs)) for o in found.outcomes] == [
        ("sequential", "finished", 2),
        ("pipelined:cuts=2", "failed", 0),
    ]
    assert "out of luck" in found.failed[0].error
    assert any("failed" in line for line in said)
    assert read_comparison(tmp_path).failed[0].error == found.failed[0].error
    assert not threads()


def test_objects_that_are_shared_are_refused(workload):
    model = workload(0).model
    found = compare(lambda seed: workload(seed, model=model), ["sequential", "pipelined:cuts=2"], epochs=1)
    assert [o.status for o in found.outcomes] == ["finished", "failed"]
    assert "returned the same Sequential" in found.failed[0].error


class Once:
    """Raises a real Ctrl-C in the middle of the second epoch of whoever trains then."""

    def __init__(self, at):
        self.calls, self.at = 0, at

    def __call__(self, output, target):
        self.calls += 1
        if self.calls == self.at:
            signal.raise_signal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else (
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            )
        return torch.nn.functional.cross_entropy(output, target)


@pytest.mark.parametrize("at", [3, 17])
def test_after_ctrl_c_it_goes_on_to_the_same_numbers(workload, tmp_path, at):
    """Strategies that drain at no other place than the epoch's end, so that an interrupt changes no number."""
    entrants = ["sequential", "sequential:inner=tasks"]
    whole = compare(workload, entrants, epochs=3, directory=tmp_path / "whole")
    interrupting = Once(at)
    with pytest.raises(KeyboardInterrupt):
        compare(lambda s: workload(s, loss=interrupting), entrants, epochs=3, directory=tmp_path / "c")
    assert not threads()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    half = read_comparison(tmp_path / "c")
    assert not half.finished and not half.failed
    again = compare(workload, entrants, epochs=3, directory=tmp_path / "c")
    assert again.finished
    for one, other in zip(whole.outcomes, again.outcomes, strict=True):
        assert losses(one) == losses(other)


def test_a_killed_comparison_is_gone_on_with(workload, tmp_path):
    entrants = ["sequential", "pipelined:cuts=2"]
    whole = compare(workload, entrants, epochs=3, directory=tmp_path / "c")
    values = json.loads((tmp_path / "c" / "comparison.json").read_text())
    # As if it had been killed in the second round, with one run's first checkpoint not written yet.
    for outcome in values["outcomes"]:
        outcome["status"], outcome["epochs"] = "unfinished", outcome["epochs"][:1]
    (tmp_path / "c" / "comparison.json").write_text(json.dumps(values))
    for checkpoint in (tmp_path / "c" / values["outcomes"][1]["path"] / "checkpoints").iterdir():
        for file in checkpoint.iterdir():
            file.unlink()
        checkpoint.rmdir()
    again = compare(workload, entrants, epochs=3, directory=tmp_path / "c")
    assert again.finished
    assert [losses(o) for o in again.outcomes] == [losses(o) for o in whole.outcomes]


def test_every_run_that_begins_is_told_with_its_folder(workload, tmp_path):
    told = []
    found = compare(workload, ["sequential", "pipelined:cuts=2"], epochs=2, directory=tmp_path, begun=told.append)
    assert [path.relative_to(tmp_path).as_posix() for path in told] == [o.path for o in found.outcomes]


def test_more_seeds_may_be_added_and_nothing_else_changed(workload, tmp_path):
    entrants = ["sequential", "pipelined:cuts=2"]
    first = compare(workload, entrants, epochs=1, directory=tmp_path)
    more = compare(workload, entrants, epochs=1, seeds=2, directory=tmp_path)
    assert [o.to_dict() if hasattr(o, "to_dict") else o for o in more.outcomes[:2]] == first.outcomes
    assert {o.seed for o in more.outcomes} == {0, 1}
    with pytest.raises(OptionError, match="has other budget"):
        compare(workload, entrants, epochs=2, directory=tmp_path)
    with pytest.raises(OptionError, match="has other strategies"):
        compare(workload, ["sequential", "pipelined:cuts=4"], epochs=1, directory=tmp_path)
    (tmp_path / "comparison.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        compare(workload, entrants, epochs=1, directory=tmp_path)


def test_minutes_end_with_the_epoch_that_uses_them_up(workload):
    found = compare(workload, ["sequential", "pipelined:cuts=2"], minutes=0.05 / 60)
    for outcome in found.outcomes:
        assert outcome.status == "finished"
        assert outcome.seconds()[-1] >= 0.05
        assert [s for s in outcome.seconds()[:-1] if s >= 0.05] == []


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({}, "neither epochs nor minutes is given"),
        ({"epochs": 1, "minutes": 1}, "both epochs and minutes are given"),
        ({"epochs": 0}, "epochs must be a whole number"),
        ({"minutes": 0}, "minutes is 0"),
        ({"epochs": 1, "seeds": 0}, "seeds is 0"),
        ({"epochs": 1, "seeds": [1, 1]}, "seeds is"),
        ({"epochs": 1, "target": 90}, "target is 90"),
        ({"minutes": 1, "strategies": ["sequential", "hybrid:stages=2,switch=0.5"]}, "switches after a share"),
    ],
)
def test_what_cannot_be_compared_is_refused(workload, options, complaint):
    with pytest.raises(OptionError, match=complaint):
        compare(workload, options.pop("strategies", ["sequential", "pipelined"]), **options)


def test_a_workload_without_validation_is_compared_by_time(workload):
    found = compare(lambda s: workload(s, validation=None), ["sequential", "pipelined:cuts=2"], epochs=2)
    assert found.finished
    assert "took" in str(found) and "reached" not in str(found)


def test_it_shows_itself_in_a_notebook(workload):
    html = compare(workload, {"<b>": "sequential", "two": "pipelined:cuts=2"}, epochs=2)._repr_html_()
    assert "<table>" in html and "<svg" in html and "&lt;b&gt;" in html and "<b>" not in html


def test_a_workload_is_made_of_names():
    with pytest.raises(TypeError):
        Workload(1, 2, 3, 4)
