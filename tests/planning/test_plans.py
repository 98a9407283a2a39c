"""``convoy.plan``: what it returns, what it refuses, and that the model stays as it was."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import convoy
from convoy import Hybrid, Pipelined, Settings
from convoy.errors import ModelError, OptionError
from convoy.planning.comparison import Comparison, Row
from convoy.strategies.pipelined.plan import PipelinePlan
from convoy.strategies.registry import STRATEGIES


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Measuring is not what is tested here."""
    for name in ("PROFILE_SECONDS", "TRIAL_SECONDS", "WHOLE_SECONDS"):
        monkeypatch.setattr(f"convoy.strategies.pipelined.balance_bench.{name}", 0.2)
    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Sequential(nn.Conv2d(c, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)) for c in (3, 8, 8, 8)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 10


@pytest.mark.smoke
def test_without_a_strategy_all_that_the_registry_knows_are_named() -> None:
    made = convoy.plan(net(), batch(), workers=2)
    assert isinstance(made, Comparison)
    assert {row.name for row in made.rows} == {*STRATEGIES, "DDP"}
    assert [r.step_seconds for r in made.rows] == sorted(r.step_seconds for r in made.rows)
    assert made.workers == 2 and made.batch_size == 8 and made.advice
    by_options = {row.options: row for row in made.rows if row.name == "pipelined"}
    assert [by_options[o].staleness for o in sorted(by_options)] == [2.0, 1.0, 0.25]
    published, halved = by_options["--stages 2"], by_options["--stages 2 --clock 1f1b"]
    assert published.bytes > halved.bytes  # one set of stage 1 more
    ways = " · ".join(f"{row.name} {row.options}" for row in made.rows)
    for words in ("sequential --inner tasks", "speculative --form faithful", "--predictor label-last", "bilayered"):
        assert words in ways
    assert len([row for row in made.rows if row.name == "concurrent" and "--placement kind" in row.options]) == 1
    for row in made.rows:
        assert row.step_seconds > 0 and all(0.0 <= share <= 1.0 + 1e-9 for share in row.busy)
        assert row.exact == row.same_numbers.startswith("plain training")
        assert bool(row.speculated) == (row.name == "speculative")
    assert "assumes that 50% of the samples are accepted" in made.table()


def test_one_core_leaves_no_pipeline() -> None:
    made = convoy.plan(net(), batch(), workers=1)
    assert isinstance(made, Comparison)
    assert {row.name for row in made.rows} == {"sequential", "bilayered"}
    reasons = {each.name: each.reason for each in made.refused}
    assert reasons["pipelined"] == reasons["hybrid"] == "a pipeline needs two cores or more, and there is one"
    assert reasons["speculative"] == "speculation needs two cores or more, and there is one"
    assert reasons["concurrent"] == "work on two engines needs two cores or more, and there is one"
    assert reasons["sequential --inner tasks"] == "sharing a mini-batch needs two cores or more, and there is one"
    assert made.advice.startswith("train sequentially")


def test_what_cannot_be_cut_is_listed_with_the_reason() -> None:
    made = convoy.plan(nn.Linear(8, 4), (torch.randn(8, 8), torch.arange(8) % 4), workers=2)
    assert isinstance(made, Comparison)
    reasons = {each.name: each.reason for each in made.refused}
    assert reasons["pipelined"] == reasons["hybrid"] == "Linear cannot be cut anywhere"
    assert "DDP" in {row.name for row in made.rows}


def test_a_pipelines_plan_and_its_table() -> None:
    made = convoy.plan(net(), batch(), Pipelined(cuts=["2"], correction="stash"), workers=2)
    assert isinstance(made, PipelinePlan)
    assert made.cuts == ("2.0",) and [s.first for s in made.stages] == ["0.0", "2.0"]
    assert made.step_seconds and made.sequential_seconds and made.everyone_seconds
    first, last = made.stages
    assert made.held_bytes(first) == 3 * (first.activation_bytes or 0)
    assert first.extra_weight_bytes == 2 * first.weight_bytes and last.extra_weight_bytes == 0
    assert made.weights_held_bytes == 3 * (first.weight_bytes + last.weight_bytes) + 2 * first.weight_bytes
    text = made.table()
    assert "holds" in text and "(sequential on 2 threads: " in text and "getitem" not in text
    assert PipelinePlan.from_dict(made.to_dict()) == made
    row = made.csv_rows()[0]
    assert row["stage"] == 1 and row["staleness"] == 2.0


def test_the_model_and_the_generators_stay() -> None:
    model = net()
    model[0][1].eval()  # type: ignore[index]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state, flags = torch.get_rng_state(), [m.training for m in model.modules()]
    convoy.plan(model, batch(), workers=2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == flags
    assert all(p.grad is None and p.is_contiguous() for p in model.parameters())


def test_memory_that_does_not_suffice() -> None:
    whole = convoy.plan(net(), batch(), workers=2)
    assert isinstance(whole, Comparison)
    (enough, *_) = [row.bytes for row in whole.rows if row.name == "sequential"]
    made = convoy.plan(net(), batch(), workers=2, settings=Settings(max_memory=enough))  # wherever it is cut
    assert isinstance(made, Comparison)
    refused = [each for each in made.refused if each.name == "pipelined --stages 2"]
    assert len(refused) == 1 and "and max_memory is" in refused[0].reason
    assert "sequential" in {row.name for row in made.rows}
    with pytest.raises(OptionError, match=r"holds .* at its peak"):
        convoy.plan(net(), batch(), Pipelined(stages=2), settings=Settings(max_memory=1000))
    with pytest.raises(OptionError, match="nothing can be planned"):
        convoy.plan(net(), batch(), settings=Settings(max_memory=1000))


def test_a_hybrid_stands_beside_sequential_training() -> None:
    made = convoy.plan(net(), batch(), Hybrid(Pipelined(stages=2), convoy.Sequential(), switch=0.5), workers=2)
    assert isinstance(made, Comparison)
    assert {row.name for row in made.rows} == {"sequential", "hybrid"}
    (row,) = [row for row in made.rows if row.name == "hybrid"]
    assert row.options == "--switch 0.5 --stages 2" and not row.exact
    rows = {row.options: row.step_seconds for row in made.rows if row.name == "sequential"}
    assert row.step_seconds > 0.5 * min(rows.values())


@pytest.mark.parametrize("pipelined_first", [True, False])
def test_a_hybrid_holds_what_the_larger_of_its_parts_holds(pipelined_first: bool) -> None:
    pipeline = Pipelined(ppv=[2])
    parts = (pipeline, convoy.Sequential()) if pipelined_first else (convoy.Sequential(), pipeline)
    made = convoy.plan(net(), batch(), Hybrid(*parts, switch=0.5), workers=2)
    assert isinstance(made, Comparison)
    (hybrid,) = (row for row in made.rows if row.name == "hybrid")
    sequential = next(row for row in made.rows if row.name == "sequential")
    alone = convoy.plan(net(), batch(), pipeline, workers=2)
    assert isinstance(alone, PipelinePlan) and alone.activation_bytes is not None
    whole = alone.activation_bytes + alone.weights_held_bytes
    assert hybrid.bytes == pytest.approx(whole, abs=len(alone.stages)) and hybrid.bytes > sequential.bytes
    limit = (hybrid.bytes + sequential.bytes) // 2
    bounded = convoy.plan(net(), batch(), Hybrid(*parts, switch=0.5), workers=2, settings=Settings(max_memory=limit))
    assert isinstance(bounded, Comparison)
    assert {row.name for row in bounded.rows} == {"sequential"}
    (refused,) = (each for each in bounded.refused if each.name.startswith("hybrid"))
    assert "and max_memory is" in refused.reason


def test_what_was_asked_for_is_planned_with_its_fields() -> None:
    asked = convoy.Speculative(form="faithful", predictor="label-mean")
    made = convoy.plan(net(), batch(), asked, workers=2)
    assert isinstance(made, Comparison)
    ours = [row.options for row in made.rows if row.name != "sequential"]
    assert ours == ["--form faithful --predictor label-mean"]
    made = convoy.plan(net(), batch(), convoy.Concurrent(groups=1, placement="kind"), workers=2)
    assert isinstance(made, Comparison)
    (row,) = [row for row in made.rows if row.name == "concurrent"]
    assert row.options == "--groups 1 --placement kind" and row.same_numbers == "plain training"
    assert row.step_seconds * 1e3 > float(row.note.split()[1]) * 0.999  # never below its bound


def test_a_layer_that_a_strategy_cannot_take_is_named() -> None:
    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.cumsum(1)

    model = nn.Sequential(nn.Conv2d(3, 8, 3), Scaled(), nn.Flatten(), nn.Linear(288, 10))
    made = convoy.plan(model, batch(), workers=2)
    assert isinstance(made, Comparison)
    reasons = {each.name: each.reason for each in made.refused}
    assert reasons["speculative --form faithful"].startswith("layer cumsum of kind other (")


def test_replicas_wait_for_the_slowest_at_a_barrier() -> None:
    def row(**fields: Any) -> Row:
        made = convoy.plan(net(), batch(), convoy.BiLayered(engine="ray", **fields), workers=2)
        assert isinstance(made, Comparison)
        (found,) = [row for row in made.rows if row.name == "bilayered"]
        return found

    uneven = row(nodes=(2, 1), update="local-sgd", allocation="even")
    assert uneven.busy[0] < 0.7 < uneven.busy[1] and uneven.staleness == 0
    shared = row(nodes=(2, 1))
    assert min(shared.busy) > 0.8 and shared.staleness > 0
    assert len(row(nodes=3).worker_bytes) == 3


def test_without_targets_the_outputs_stand_for_the_loss() -> None:
    made = convoy.plan(net(), batch()[0], "pipelined", workers=2)
    assert isinstance(made, PipelinePlan) and made.step_seconds


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"workers": 0}, "workers is 0"), ({"strategy": "pipeline"}, "strategy 'pipeline' is unknown")],
)
def test_refusals(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        convoy.plan(net(), batch(), **arguments)  # type: ignore[arg-type]


def test_what_is_no_model_or_no_batch_is_refused() -> None:
    with pytest.raises(ModelError, match="the model is a str"):
        convoy.plan("lenet5", batch())  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="the batch has no samples"):
        convoy.plan(net(), tuple(part[:0] for part in batch()))


@pytest.mark.parametrize("strategy", [None, "pipelined"])
def test_labels_without_an_output_are_named(strategy: str | None) -> None:
    x, y = batch()
    with pytest.raises(ModelError, match=r"Target \d+ is out of bounds") as caught:
        convoy.plan(net(), (x, y + 5), strategy, workers=2)
    assert "as many outputs as there are classes" in str(caught.value.hint)


def test_a_frozen_model_is_refused() -> None:
    with pytest.raises(ModelError, match="has no weights to train"):
        convoy.plan(net().requires_grad_(False), batch())


def test_a_strategy_may_bring_its_own_forecast(monkeypatch: pytest.MonkeyPatch) -> None:
    made = convoy.plan(net(), batch(), workers=1)
    assert isinstance(made, Comparison)
    own = dataclasses.replace(made.rows[0], name="mine")
    monkeypatch.delitem(__import__("convoy.planning.forecasts", fromlist=["FORECASTS"]).FORECASTS, "hybrid")
    monkeypatch.setattr(Hybrid, "forecast", staticmethod(lambda bench, loss, asked: [own]), raising=False)
    again = convoy.plan(net(), batch(), workers=1)
    assert isinstance(again, Comparison)
    assert "mine" in {row.name for row in again.rows}
