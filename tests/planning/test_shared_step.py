"""What is assumed of speculation, and that rows are of the program that would train."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from convoy.engines.program import Store
from convoy.planning.measures import Actions
from convoy.planning.shared_step import accepting, concurrent
from convoy.strategies.base import Settings
from convoy.strategies.batch import arguments
from convoy.strategies.concurrent import Concurrent
from convoy.strategies.pipelined.balance_bench import Bench
from convoy.strategies.pipelined.optimizer import snapshot
from convoy.strategies.speculative import Speculative
from convoy.strategies.speculative.build import prepare, program
from convoy.strategies.speculative.frame import NotedFrame


@pytest.fixture
def bench() -> Bench:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)
    )
    x, y = torch.randn(8, 3, 8, 8), torch.arange(8)
    return Bench(model, nn.functional.cross_entropy, x, y, Settings(threads=2))


ASSUMED = [
    *(Speculative(form="faithful", predictor=predictor) for predictor in ("label-last", "zero", "dithered:zero")),
    *(Speculative(form="cut", predictor=predictor) for predictor in ("label-mean", "dithered:zero")),
]


@pytest.mark.parametrize("strategy", ASSUMED, ids=lambda s: f"{s.form} {s.predictor}")
@pytest.mark.parametrize(("share", "accepted"), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_the_assumed_share_is_what_every_comparison_accepts(
    bench: Bench, strategy: Speculative, share: float, accepted: float
) -> None:
    loss = nn.functional.cross_entropy
    actions = Actions(bench, loss)
    x, y = bench.part(1)
    inputs = actions.graph.bind(*arguments(x))
    prepared = prepare(
        strategy, actions.graph, actions.graph.program, loss, actions.optimizer, bench.settings, None,
        inputs,
    )  # fmt: skip
    made = program(accepting(prepared, share), "speculate")
    frame = NotedFrame(0, [], inputs, y, snapshot(actions.optimizer), 8)
    made.begin(frame)
    store: Any = Store()
    for _, action in made.recurring.at(0, {}):
        made.run(action, store)
    assert frame.notes["selection"].accepted == accepted


def test_placements_share_what_was_measured(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    plain = Actions.seconds

    def counted(self: Actions, made: Any, threads: int = 1) -> list[float]:
        asked.append(len(made.recurring.entries))
        return plain(self, made, threads)

    monkeypatch.setattr(Actions, "seconds", counted)
    rows = list(concurrent(bench, nn.functional.cross_entropy, None))
    assert len(rows) == 2 and len(asked) == len(set(asked)) == 2  # one group and two, each once
    assert len(list(concurrent(bench, nn.functional.cross_entropy, Concurrent(groups=2)))) == 1
