"""Short steps are rehearsed: the forecast is that of the engine itself, and nothing of the user's is touched."""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from convoy.engines.threads import ThreadsEngine
from convoy.events.event import Event
from convoy.strategies.base import Settings
from convoy.strategies.pipelined import Pipelined, planner, rehearsal
from convoy.strategies.pipelined.balance_bench import Bench
from convoy.strategies.pipelined.planner import plan_on


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Conv2d(4, 4, 3), nn.Flatten(),
        nn.Linear(64, 5),
    )  # fmt: skip


def _bench(model: nn.Module, optimizer: torch.optim.Optimizer | None = None, x: torch.Tensor | None = None) -> Bench:
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    settings = Settings(threads=2, forecast=True)
    x, y = torch.randn(8, 3, 8, 8) if x is None else x, torch.randint(0, 5, (8,))
    return Bench(model, nn.CrossEntropyLoss(), x, y, settings, optimizer, hurry=0.02)


@pytest.fixture
def long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is just now, the step counts as short."""
    monkeypatch.setattr(rehearsal, "LONGEST_SECONDS", 1e9)


@pytest.mark.parametrize(
    "strategy",
    [
        Pipelined(cuts=["4"]),
        Pipelined(cuts=["1", "4"], clock="1f1b", accumulate=4),
        Pipelined(cuts=["4"], correction="predict:linear+spike"),
        Pipelined(cuts=["4"], placement="split"),
    ],
)
def test_the_step_that_is_told_is_what_the_engine_took(strategy, long_enough, monkeypatch):
    heard: list[Event] = []

    def listening(program, store, options):
        def sink(event):
            heard.append(event)
            options.sink(event)

        return ThreadsEngine(program, store, replace(options, sink=sink))

    monkeypatch.setattr(rehearsal, "ThreadsEngine", listening)
    plan = plan_on(_bench(_model()), strategy, nn.CrossEntropyLoss()).plan
    ends = [e.end for e in heard if e.kind == "action" and e.data["kind"] == "U" and e.data["subject"] == "1"]
    assert len(ends) > rehearsal.WINDOWS * rehearsal.STEPS
    gaps = [b - a for a, b in pairwise(ends)]
    assert min(gaps) <= plan.step_seconds <= max(gaps)


class Slow(torch.optim.SGD):
    """Takes its time where it has anything to update."""

    def step(self, closure=None):
        if any(parameter.grad is not None for group in self.param_groups for parameter in group["params"]):
            time.sleep(0.02)
        return super().step(closure)


def test_updates_count(long_enough):
    model = _model()
    bench = _bench(model, Slow(model.parameters(), lr=0.1, momentum=0.9))
    planned = plan_on(bench, Pipelined(cuts=["4"]), nn.CrossEntropyLoss())
    seconds = rehearsal.rehearse(bench, planned, nn.CrossEntropyLoss())
    assert seconds is not None and seconds > 0.02
    assert not {id(p) for p in bench.scratch.parameters.values()} & {id(p) for p in model.parameters()}
    assert {id(p) for p in bench.scratch.parameters.values()} == {id(p) for p in bench.scratch.program.parameters()}


def test_nothing_of_the_users_changes(long_enough):
    model = _model()
    before, random = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    bench = _bench(model)
    random = torch.random.get_rng_state()
    planned = plan_on(bench, Pipelined(cuts=["4"]), nn.CrossEntropyLoss())
    assert torch.equal(random, torch.random.get_rng_state())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert planned.graph is bench.graph is not bench.scratch


def test_the_advice_follows_the_rehearsal(monkeypatch):
    monkeypatch.setattr(planner, "rehearse", lambda *_: 123.0)
    plan = plan_on(_bench(_model()), Pipelined(cuts=["4"]), nn.CrossEntropyLoss()).plan
    assert plan.step_seconds == 123.0 and plan.advice is not None and plan.advice.endswith("train sequentially")


def test_what_is_chosen_automatically_gives_way_to_no_pipeline(monkeypatch):
    bench = _bench(_model())
    chosen = Pipelined(stages=2), "chosen from 5 possibilities"
    monkeypatch.setattr(planner, "choices", lambda *_: iter([chosen]))
    monkeypatch.setattr(planner, "rehearse", lambda *_: 123.0)
    planned = plan_on(bench, Pipelined(stages="auto"), nn.CrossEntropyLoss())
    assert len(planned.plan.stages) == 1 and planned.strategy.stages == 1
    assert "rehearsed, it took 123000.0 ms" in planned.plan.notes[-1] and "no pipeline" in planned.plan.notes[-1]
    monkeypatch.setattr(planner, "rehearse", lambda *_: 1e-9)
    assert len(plan_on(bench, Pipelined(stages="auto"), nn.CrossEntropyLoss()).plan.stages) == 2


@pytest.mark.parametrize("why", ["long", "one stage", "other engine", "no forecast"])
def test_what_is_not_rehearsed(why, monkeypatch):
    bench = _bench(_model())
    planned = plan_on(bench, Pipelined(cuts=[] if why == "one stage" else ["4"]), nn.CrossEntropyLoss())
    if why == "long":
        monkeypatch.setattr(rehearsal, "LONGEST_SECONDS", 0.0)
    elif why == "other engine":
        planned = replace(planned, strategy=replace(planned.strategy, engine="inline"))
    elif why == "no forecast":
        planned = replace(planned, plan=replace(planned.plan, step_seconds=None))
    assert rehearsal.rehearse(bench, planned, nn.CrossEntropyLoss()) is None


@pytest.mark.parametrize("held", [8, 100])
def test_a_layer_is_charged_with_its_own_images(held):
    """Not with the storage that they are a view of: of the mini-batch a micro-batch, of the data set a mini-batch."""
    bench = _bench(_model(), x=torch.randn(held, 3, 8, 8)[:8])
    first = bench.graph.position[bench.graph.layers[0].name]
    kept = [bench.profile(1, parts).saved_bytes(first, first + 1) for parts in (1, 4)]
    assert kept == [8 * 3 * 8 * 8 * 4, 2 * 3 * 8 * 8 * 4]
