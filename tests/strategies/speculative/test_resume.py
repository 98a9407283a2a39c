"""Checkpoints, the oracle and the trainer: the same bits after a stop, decisions computed again, measures shown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from torch import nn

from convoy.errors import CheckpointError, DataError, InternalError
from convoy.strategies.base import Settings
from convoy.strategies.oracle import oracle
from convoy.strategies.speculative import Speculative

CUT = Speculative(cut="conv2", predictor="linear", threshold=1.0, warmup=3, controller="auto:-0.5,-0.6,3")
STRATEGIES = [
    CUT,
    replace(CUT, predictor="per-sample"),
    replace(CUT, predictor="network"),
    replace(CUT, form="faithful", predictor="label-last", threshold=0.8),
    replace(CUT, form="faithful", predictor="label-mean", cut=None, threshold=0.8),
    replace(CUT, form="faithful", predictor="dithered:zero", cut=None, threshold=6.0),
]


def named(strategy: Speculative) -> str:
    return f"{strategy.form} {strategy.predictor}"


def stopped_and_resumed(run: Any, strategy: Speculative, tmp_path: Any) -> Any:
    """Two epochs of three, and the rest by another trainer from the last checkpoint, in the middle of an epoch."""
    run(strategy, run_dir=tmp_path, name="part", save_every=7).fit(2)
    resumed = run(strategy, run_dir=tmp_path, name="part", save_every=7)
    resumed.trainer.load(tmp_path / "part")
    resumed.fit(3)
    return resumed


@pytest.mark.parametrize("strategy", STRATEGIES, ids=named)
def test_resumed_in_the_middle(run: Any, same: Any, strategy: Speculative, tmp_path: Any) -> None:
    whole = run(strategy)
    whole.fit(3)
    resumed = stopped_and_resumed(run, strategy, tmp_path)
    same(whole, resumed)
    late = {(e.name, e.batch): dict(e.data) for e in whole.events if e.kind == "decision" and e.name != "drain"}
    again = {(e.name, e.batch): dict(e.data) for e in resumed.events if e.kind == "decision" and e.name != "drain"}
    assert again and again.items() <= late.items() and ("accept", 16) in again


@pytest.mark.parametrize("strategy", STRATEGIES, ids=named)
def test_the_oracle_computes_the_accept_sets_again(parts: Any, batches: Any, same: Any, strategy: Speculative) -> None:
    made, events, data = parts(0.2), [], batches(9)
    settings = Settings(seed=5, threads=2, clip=1.0)
    bound = strategy.bind(made.model, nn.CrossEntropyLoss(), made.optimizer, settings=settings, sink=events.append)
    with bound as step:
        for x, y in data:
            step(x, y)
    assert {e.name for e in events if e.kind == "decision"} >= {"accept", "probe"}
    again = parts(0.2)
    rows = [{"kind": e.kind, "name": e.name, "batch": e.batch, "data": dict(e.data)} for e in events]
    replay = oracle(
        again.model, nn.CrossEntropyLoss(), again.optimizer, strategy, data, settings=settings, events=rows
    )  # fmt: skip
    same(made, again)
    assert [d.name for d in replay.decisions] == [e.name for e in events if e.kind == "decision"]

    accept = next(row for row in rows if row["name"] == "accept")
    accept["data"] = {**accept["data"], "set": "3f" if accept["data"]["set"] != "3f" else "1"}
    other = parts(0.2)
    with pytest.raises(InternalError, match=f"decides accept at mini-batch {accept['batch']}"):
        oracle(other.model, nn.CrossEntropyLoss(), other.optimizer, strategy, data, settings=settings, events=rows)


def test_a_checkpoint_of_another_predictor_is_refused(parts: Any, batches: Any) -> None:
    made, other = parts(), parts()
    with CUT.bind(made.model, nn.CrossEntropyLoss(), made.optimizer) as step:
        step(*batches(1)[0])
        state = step.state()
    with replace(CUT, predictor="label-mean").bind(other.model, nn.CrossEntropyLoss(), other.optimizer) as step:
        step.restore(state)
        with pytest.raises(CheckpointError, match="does not fit this predictor"):
            step(*batches(1)[0])


@pytest.mark.parametrize(("warmup", "warned"), [(100, True), (3, False)])
def test_a_run_shorter_than_its_warm_up_is_warned_of_once(run: Any, warmup: int, warned: bool) -> None:
    made = run(replace(CUT, warmup=warmup))
    made.fit(2)
    batches = len([e for e in made.events if e.kind == "step"])
    told = [e.data["message"] for e in made.events if e.kind == "warning"]
    assert len(told) == warned
    assert not warned or f"the run has {batches} mini-batches, its warm-up 100, so it will never speculate" in told[0]


def test_steps_tell_what_was_accepted(run: Any) -> None:
    made = run(replace(CUT, controller="always:5"))
    made.fit(2)
    steps = [e.data for e in made.events if e.kind == "step"]
    assert [s["mode"] for s in steps[:9]] == [*["exact"] * 3, "probe", *["speculate"] * 4, "probe"]
    assert all(0 <= s["accepted"] <= 1 and -1 <= s["signal_agreement"] <= 1 for s in steps[3:])
    assert steps[-1]["agreement"] is not None and "accepted" not in steps[0]


def test_a_model_in_eval_mode_keeps_what_it_remembers(parts: Any, batches: Any) -> None:
    """The layers' modes change, and what was learned stays: accepted as before."""
    made = parts()
    with replace(CUT, controller="always").bind(made.model, nn.CrossEntropyLoss(), made.optimizer) as step:
        modes = []
        for number, (x, y) in enumerate(batches(6)):
            made.model.norm1.train(number < 4)
            modes.append(step(x, y).measures["mode"])
    assert modes == ["exact"] * 3 + ["speculate"] * 3 and made.model.norm1.num_batches_tracked == 4


def test_targets_that_are_no_labels(parts: Any, batches: Any) -> None:
    made = parts()
    x, y = batches(1)[0]
    with CUT.bind(made.model, nn.CrossEntropyLoss(), made.optimizer) as step:
        for target, found in ((y.float(), "float32"), (y[:-1], r"\(3,\)"), ([1, 2], "a list")):
            with pytest.raises(DataError, match=f"4 whole numbers as target, got .*{found}"):
                step(x, target)


@pytest.mark.parametrize(
    ("label", "said"), [(-100, "-100 is none of the 3 classes"), (99, "99 is none of the 3 classes")]
)
def test_labels_that_are_no_classes(parts: Any, batches: Any, label: int, said: str) -> None:
    """Such as a loss's ignore_index: sequential training may bear it, a memory by label cannot."""
    made = parts()
    x, y = batches(1)[0]
    y[1] = label
    with (
        CUT.bind(made.model, nn.CrossEntropyLoss(ignore_index=-100), made.optimizer) as step,
        pytest.raises(DataError, match=said),
    ):
        step(x, y)


def test_a_loss_that_ends_speculation_is_a_decision_that_is_resumed_and_replayed(
    run: Any, same: Any, parts: Any, batches: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"MEMORY": 4, "RISE": -1.0, "SPREAD": 0.0}.items():  # any loss is taken for one that rises
        monkeypatch.setattr(f"convoy.strategies.speculative.controller.Controller.{name}", value)
    strategy = replace(CUT, controller="auto:-0.9,-1.0,2")
    whole = run(strategy)
    whole.fit(3)
    ended = [e for e in whole.events if e.name == "speculation" and e.kind == "decision" and "loss" in e.data]
    told = [e for e in whole.events if e.kind == "warning" and "the loss rose to" in e.data["message"]]
    assert len(ended) == len(told) > 1 and all(e.data["on"] is False for e in ended)
    resumed = stopped_and_resumed(run, strategy, tmp_path)
    same(whole, resumed)
    made, again, events, data = parts(), parts(), [], batches(12)
    with strategy.bind(made.model, nn.CrossEntropyLoss(), made.optimizer, sink=events.append) as step:
        for x, y in data:
            step(x, y)
    assert any("loss" in e.data for e in events if e.kind == "decision" and e.name == "speculation")
    oracle(again.model, nn.CrossEntropyLoss(), again.optimizer, strategy, data, events=events)
    same(made, again)
