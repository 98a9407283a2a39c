"""What a plan says of the stages: names that the user knows, and a table that is whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convoy.graph.capture import capture
from convoy.graph.split import allowed_cuts, split
from convoy.strategies.pipelined import Pipelined
from convoy.strategies.pipelined.describe import advice, describe
from convoy.strategies.pipelined.plan import PipelinePlan


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(8, 16)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.wide(x).chunk(2, dim=1)
        return torch.relu(left) * torch.sigmoid(right) + x


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block(), Block())

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


def test_stages_are_named_by_modules_wherever_they_begin() -> None:
    graph = capture(Net(), (torch.randn(4, 8),))
    for cut in allowed_cuts(graph):
        plan = describe(Pipelined(), graph, [cut], split(graph, [cut]), 1, 4)
        for stage in plan.stages:
            for name in (stage.first, stage.last):
                assert name.startswith("blocks"), (cut, name)
                assert "getitem" not in name and "chunk" not in name


BETTER = "correction='predict+spike' (for SGD with momentum)"


@pytest.mark.parametrize(
    ("fields", "said_of"),
    [
        ({}, f"up to 6 updates old, which can cost accuracy: try clock='1f1b', accumulate=4, {BETTER}, with all"),
        (
            {"clock": "1f1b", "correction": "stage-lr"},
            "up to 3 updates old, which can cost accuracy: try accumulate=4, w",
        ),
        ({"placement": "split"}, f"try accumulate=4, {BETTER}, with all"),
        ({"clock": "1f1b", "accumulate": 4}, None),
    ],
)
def test_advice_where_weights_are_old(fields: dict[str, Any], said_of: str | None) -> None:
    graph = capture(Net(), (torch.randn(4, 8),))
    cuts = allowed_cuts(graph)[1:4]
    said = describe(Pipelined(**fields), graph, cuts, split(graph, cuts), 1, 4).advice
    assert said is said_of if said_of is None else said_of in str(said)


@pytest.mark.parametrize(("fields", "old"), [({}, True), ({"clock": "1f1b"}, False), ({"accumulate": 2}, False)])
def test_two_updates_are_old_and_one_is_not(fields: dict[str, Any], old: bool) -> None:
    graph = capture(Net(), (torch.randn(4, 8),))
    cuts = allowed_cuts(graph)[2:3]
    said = describe(Pipelined(**fields), graph, cuts, split(graph, cuts), 1, 4).advice
    assert (said is not None) == old and (not old or "up to 2 updates old" in str(said))


def plan(step: float, everyone: float, alone: float, threads: int = 2) -> PipelinePlan:
    graph = capture(Net(), (torch.randn(4, 8),))
    cuts = allowed_cuts(graph)[2:3]
    made = describe(Pipelined(clock="1f1b"), graph, cuts, split(graph, cuts), 1, 4)
    fields = {"step_seconds": step, "everyone_seconds": everyone, "sequential_seconds": alone, "threads": threads}
    return PipelinePlan.from_dict(made.to_dict() | fields)


@pytest.mark.parametrize(
    ("step", "everyone", "alone", "words"),
    [
        (1.0, 1.5, 1.9, None),
        (1.0, 1.05, 1.9, "sequential training on 2 threads takes only 1.05 times as long"),
        (1.0, 0.5, 1.9, "sequential training on 2 threads is 2.00 times as fast"),
        (1.0, 3.0, 0.8, "sequential training on 1 thread is 1.25 times as fast"),
    ],
)
def test_advice_where_a_pipeline_gains_little(step: float, everyone: float, alone: float, words: str | None) -> None:
    said = advice(plan(step, everyone, alone))
    if words is None:
        assert said is None
    else:
        assert said is not None and said.startswith(words) and said.endswith("train sequentially")
