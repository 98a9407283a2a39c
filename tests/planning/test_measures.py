"""How times of actions that were measured on a part of the mini-batch become those of the whole."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch
from torch import nn

from convoy.engines.modelled import modelled
from convoy.engines.pool import PoolEngine
from convoy.planning import measures
from convoy.planning.measures import Actions, Rehearsed
from convoy.strategies.base import Settings
from convoy.strategies.pipelined.balance_bench import Bench
from convoy.strategies.tasks.build import build


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


def bench(samples: int = 64, optimizer: Any = None) -> Bench:
    model = net()
    made = None if optimizer is None else optimizer(model.parameters())
    x, y = torch.randn(samples, 3, 8, 8), torch.arange(samples) % 10
    return Bench(model, nn.functional.cross_entropy, x, y, Settings(threads=2), made)


@pytest.mark.parametrize(("whole", "parts"), [(0.4, 1), (0.8, 2), (8.0, 4)])
def test_what_takes_long_is_measured_on_a_part(monkeypatch: pytest.MonkeyPatch, whole: float, parts: int) -> None:
    """No more than four parts of 64: smaller ones would be mostly calls."""
    made = bench()
    monkeypatch.setattr(made, "whole", lambda threads, count=1: whole if count == 1 else 1.25 * whole)
    monkeypatch.setattr(made, "update", lambda threads: 0.0)
    seen: list[int] = []

    def timed(program: Any, frame: Any, **options: Any) -> list[float]:
        seen.append(frame(0).samples)
        return [1.0] * len(program.recurring.entries)

    monkeypatch.setattr(measures, "action_seconds", timed)
    actions = Actions(made, nn.functional.cross_entropy)
    program = build(actions.bound(1), 1).program
    found = actions.whole(program.recurring, actions.seconds(program))
    assert seen == [64 // parts]
    by_kind = {action.kind: spent for (_, action), spent in zip(program.recurring.entries, found, strict=True)}
    assert by_kind["U"] == 1.0  # the weights do not become more
    assert by_kind["F"] == pytest.approx(1.0 if parts == 1 else parts / 1.25)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_timing_moves_no_weight_and_leaves_no_gradient(kind: type[torch.optim.Optimizer]) -> None:
    made = bench(optimizer=lambda p: kind(p, lr=0.1, weight_decay=0.1))
    actions = Actions(made, nn.functional.cross_entropy)
    before = [p.detach().clone() for p in made.scratch.program.parameters()]
    user = [p.detach().clone() for p in made.graph.parameters.values()]
    buffers = [b.clone() for b in made.graph.buffers.values()]
    program = build(actions.bound(2), 2).program
    found = actions.seconds(program)
    assert type(actions.optimizer) is kind and all(spent >= 0 for spent in found) and sum(found) > 0
    assert actions.rehearsed(program, {"worker 1": 1, "worker 2": 1}, PoolEngine).finish > 0
    assert not [t for t in threading.enumerate() if t.name.startswith("convoy worker")]
    assert all(torch.equal(p, old) for p, old in zip(made.scratch.program.parameters(), before, strict=True))
    assert all(p.grad is None for p in made.scratch.program.parameters())
    assert all(torch.equal(p, old) for p, old in zip(made.graph.parameters.values(), user, strict=True))
    assert all(torch.equal(b, old) for b, old in zip(made.graph.buffers.values(), buffers, strict=True))


@pytest.mark.parametrize(("handing", "limit"), [(1.0, 1.5), (1.3, 1.5), (1.3, 0.1)])
def test_what_a_rehearsal_takes_longer_the_mini_batch_takes_longer(
    monkeypatch: pytest.MonkeyPatch, handing: float, limit: float
) -> None:
    """``limit`` 0.1: a part was rehearsed, of which the mini-batch has four."""
    made = bench()
    monkeypatch.setattr(made, "whole", lambda threads, count=1: 0.4)
    monkeypatch.setattr(made, "update", lambda threads: 0.0)
    monkeypatch.setattr(measures, "REHEARSED_SECONDS", limit)
    actions = Actions(made, nn.functional.cross_entropy)
    program = build(actions.bound(2), 2).program
    seconds = [0.0] + [1.0 if action.kind != "U" else 0.0 for _, action in program.recurring.entries[1:]]
    plain = modelled(program.recurring, seconds, ["a", "b"])
    shown = Rehearsed(handing * plain.finish, seconds)
    monkeypatch.setattr(Actions, "rehearsed", lambda self, *others: shown)
    found = actions.carried_out(program, {"a": 1, "b": 1}, PoolEngine)
    factor = 1 if limit > 1 else 4
    assert found.finish == pytest.approx(factor * handing * plain.finish)
    assert found.shares == pytest.approx([share / handing for share in plain.shares])  # it waits meanwhile


def test_a_rehearsal_notes_what_each_action_takes_and_not_what_warms_up(monkeypatch: pytest.MonkeyPatch) -> None:
    actions = Actions(bench(), nn.functional.cross_entropy)
    program = build(actions.bound(2), 2).program
    passes: list[int] = []
    plain = type(program).run

    def slow_at_first(self: Any, action: Any, store: Any) -> int:
        if action.kind == "L":
            passes.append(action.batch)
            time.sleep(0.05 if action.batch else 0.8)
        return plain(self, action, store)

    monkeypatch.setattr(type(program), "run", slow_at_first)
    found = actions.rehearsed(program, {"worker 1": 1, "worker 2": 1}, PoolEngine)
    (place,) = [i for i, (_, action) in enumerate(program.recurring.entries) if action.kind == "L"]
    assert passes[:2] == [0, 1] and len(passes) <= 1 + measures.REHEARSALS
    assert 0.05 <= found.seconds[place] < 0.4 and 0.05 <= found.finish < 0.8
