"""Corrections against a simulation in plain Python floats that knows only the formulas of the publications."""

from __future__ import annotations

from math import exp, log, pi, sin
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from convoy.errors import Diverged, OptionError
from convoy.events.event import Event
from convoy.graph.capture import capture
from convoy.graph.split import split
from convoy.strategies.base import Settings
from convoy.strategies.pipelined import Pipelined
from convoy.strategies.pipelined.corrections import (
    Corrections,
    prediction_factor,
    spike_factors,
    stage_lr_factor,
)
from convoy.strategies.pipelined.optimizer import StageOptimizer, snapshot
from convoy.strategies.pipelined.weights import Predicted
from convoy.training.trainer import Trainer

LR, MOMENTUM, DECAY = 0.05, 0.9, 0.01


class Chain(nn.Module):
    """out = w_n ... w_2 w_1 x: one weight a stage."""

    def __init__(self, stages: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(stages))
        self.double()
        with torch.no_grad():
            for i, weight in enumerate(self.parameters()):
                weight.fill_(0.9 + 0.05 * i)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def half_square(output: Tensor, target: Tensor) -> Tensor:
    return 0.5 * (output - target).square().mean()


def batches(count: int) -> list[tuple[float, float]]:
    return [(0.5 + 0.1 * (t % 3), 1.0 + 0.2 * (t % 2)) for t in range(count)]


def delays_of(stages: int, clock: str) -> list[int]:
    return [(2 if clock == "registers" else 1) * (stages - i) for i in range(1, stages + 1)]


def simulated(stages: int, clock: str, correction: str, count: int) -> list[float]:
    """Final weights by the formulas of SYSTEMS: versions, look-ahead, stash, spike, PipeMare, DC-ASGD, stage-lr."""
    names = correction.split("+")
    weights = [[0.9 + 0.05 * i] for i in range(stages)]
    velocity = [[0.0] for _ in range(stages)]
    drift = [0.0] * stages
    rates = [LR * (sin(pi / (4 * d + 2)) if "stage-lr" in names else 1.0) for d in delays_of(stages, clock)]
    for t, (x, y) in enumerate(batches(count)):
        activations, used = [x], []
        for i, d in enumerate(delays_of(stages, clock)):
            version = max(0, t - d)
            w = weights[i][version]
            if "predict:linear" in names:
                w -= rates[i] * d * velocity[i][version]
            if "predict:momentum" in names:
                w -= rates[i] * (MOMENTUM - MOMENTUM ** (d + 1)) / (1 - MOMENTUM) * velocity[i][version]
            used.append(w)
            activations.append(activations[-1] * w)
        error = activations[-1] - y
        for i in reversed(range(stages)):
            d = delays_of(stages, clock)[i]
            w = weights[i][t]
            g = error * activations[i]
            back = w
            if "stash" in names or "dc-asgd" in names:
                back = used[i]
            if "pipemare" in names:
                back = w - d * drift[i]
            if "dc-asgd" in names:
                g += 0.04 * g * g * (w - used[i])
            error *= back
            g += DECAY * w
            v = MOMENTUM * velocity[i][t] + g
            lr = rates[i]
            if "pipemare" in names:
                lr /= max(d, 1) ** (1 - min(t / (count // 4), 1))
            step = v
            if "spike" in names:
                a = MOMENTUM**d
                step = a * v + (1 - a) / (1 - MOMENTUM) * g
            new = w - lr * step
            if "pipemare" in names and d:
                gamma = exp(log(0.135) / d)
                drift[i] = gamma * drift[i] + (1 - gamma) * (new - w)
            weights[i].append(new)
            velocity[i].append(v)
    return [history[-1] for history in weights]


def trained(stages: int, clock: str, correction: str | None, count: int, **fields: Any) -> list[float]:
    model = Chain(stages)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    cuts = [f"layers.{i}" for i in range(1, stages)]
    strategy = Pipelined(cuts=cuts, clock=clock, correction=correction, **fields)
    options: dict[str, Any] = {"settings": Settings(total_steps=count), "sink": [].append}  # warnings are expected
    with strategy.bind(model, half_square, optimizer, **options) as step:
        for x, y in batches(count):
            step(torch.tensor([[x]], dtype=torch.double), torch.tensor([[y]], dtype=torch.double))
    return [p.item() for p in model.parameters()]


NAMES = [
    "none", "stash", "predict:linear", "predict:momentum", "spike", "pipemare", "dc-asgd", "stage-lr",
    "predict:linear+spike", "predict:momentum+spike", "stage-lr+spike", "predict:linear+stage-lr",
    "predict:momentum+stage-lr", "predict:linear+spike+stage-lr",
]  # fmt: skip


@pytest.mark.parametrize("correction", NAMES)
@pytest.mark.parametrize("clock", ["registers", "1f1b"])
@pytest.mark.parametrize("stages", [2, 4])
def test_each_correction_is_its_formula(correction: str, clock: str, stages: int) -> None:
    expected = simulated(stages, clock, correction, 24)
    assert trained(stages, clock, correction, 24) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("correction", NAMES[1:])
def test_each_correction_changes_something(correction: str) -> None:
    assert trained(3, "registers", correction, 16) != trained(3, "registers", None, 16)


@pytest.mark.parametrize("correction", NAMES)
def test_split_placement_gives_the_same(correction: str) -> None:
    assert trained(3, "registers", correction, 12, placement="split") == trained(3, "registers", correction, 12)


@pytest.mark.parametrize("correction", ["none", "stash", "predict:linear+spike", "pipemare", "stage-lr"])
def test_without_delay_nothing_changes(correction: str) -> None:
    assert trained(1, "registers", correction, 8) == trained(1, "registers", None, 8)


def test_the_prediction_looks_ahead_by_the_rate_that_the_stage_steps_with() -> None:
    """A constant gradient's velocity v is all there is: D steps of eta_i v lead to where the prediction looked."""
    delay, rate, momentum = 2.0, 0.02, 0.5
    model = Chain(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum)
    segment = split(capture(model, (torch.ones(1, 1, dtype=torch.double),)), [])[0]
    stage = StageOptimizer(optimizer, segment.parameters.values())
    weights = Predicted(segment, stage, delay, Corrections.parse("predict+stage-lr"))
    (weight,) = segment.parameters.values()
    hyper = snapshot(optimizer)
    stage.state(weight)["momentum_buffer"] = torch.full_like(weight, 2.0)
    (seen,) = weights._look_ahead(hyper).values()
    before = weight.detach().clone()
    for _ in range(int(delay)):
        weight.grad = torch.full_like(weight, 2.0 * (1.0 - momentum))  # keeps the velocity
        weights.update(0, hyper, None)
    assert seen.item() == pytest.approx(weight.item())
    assert (before - weight).item() == pytest.approx(delay * rate * sin(pi / 10) * 2.0)


def test_spike_at_delay_one_is_nesterov() -> None:
    """1f1b, K = 1: the first stage has D = 1. Its step with spike compensation is PyTorch's Nesterov step."""
    a, b = spike_factors(1.0, MOMENTUM)
    assert (a, b) == pytest.approx((MOMENTUM, 1.0))
    velocity = gradient = torch.tensor([0.7, -1.3], dtype=torch.double)
    ours = -LR * (a * velocity + b * gradient)
    p = nn.Parameter(torch.zeros(2, dtype=torch.double))
    p.grad = gradient.clone()
    torch.optim.SGD([p], lr=LR, momentum=MOMENTUM, nesterov=True).step()
    assert p.tolist() == pytest.approx(ours.tolist())


def test_the_factors_of_the_publications() -> None:
    assert [round(stage_lr_factor(d), 3) for d in (0, 1, 2, 4, 8)] == [1.0, 0.5, 0.309, 0.174, 0.092]
    assert prediction_factor("linear", 4, 0.9) == 4
    assert prediction_factor("momentum", 4, 0.9) < 4
    assert prediction_factor("momentum", 1, 0.9) == pytest.approx(0.9)
    assert spike_factors(0, 0.9) == (1.0, 0.0)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["predict:linear+spike", "stash", "pipemare"]), st.integers(2, 4), st.integers(1, 4))
def test_corrections_take_the_delay_in_updates(correction: str, stages: int, parts: int) -> None:
    """With accumulation D = d / m; a run on threads equals the inline oracle."""

    def run(engine: str) -> list[float]:
        torch.manual_seed(1)
        model = nn.Sequential(*[nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(stages)])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        strategy = Pipelined(
            cuts=[str(i) for i in range(1, stages)],
            clock="1f1b", accumulate=parts, correction=correction, engine=engine,
        )  # fmt: skip
        options: dict[str, Any] = {"settings": Settings(total_steps=6), "sink": [].append}  # warnings are expected
        with strategy.bind(model, nn.functional.mse_loss, optimizer, **options) as step:
            for t in range(6):
                x = torch.randn(4, 6, generator=torch.Generator().manual_seed(t))
                step(x, x)
        return [p.detach().double().sum().item() for p in model.parameters()]

    assert run("threads") == run("inline")


def test_stash_holds_no_more_versions_than_it_needs() -> None:
    """At most ceil(D) copies beside the weights themselves, and none after the drain."""
    model = Chain(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    strategy = Pipelined(cuts=["layers.1", "layers.2"], correction="stash", engine="inline")
    step = strategy.bind(model, half_square, optimizer)
    worst = [0, 0, 0]
    for x, y in batches(12):
        step(torch.tensor([[x]], dtype=torch.double), torch.tensor([[y]], dtype=torch.double))
        for i in range(3):
            worst[i] = max(worst[i], step._program.stages[str(i + 1)].weights.copies)  # type: ignore[attr-defined]
    assert worst[0] <= 4 and worst[1] <= 2 and worst[2] == 0
    assert worst[0] > 0
    step.drain()
    assert all(stage.weights.copies == 0 for stage in step._program.stages.values())  # type: ignore[attr-defined]
    step.close()


def test_predict_alone_is_linear() -> None:
    assert Corrections.parse("predict+spike") == Corrections.parse("predict:linear+spike")
    assert Corrections.parse("predict").prediction == "linear"


class TestRefusals:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("spikes", "no correction 'spikes'"),
            ("spike+spike", "twice"),
            ("stash+spike", "'stash' cannot be joined"),
            ("predict:linear+predict:momentum", "exclude each other"),
            ("predict+predict:linear", "twice"),
        ],
    )
    def test_names(self, text: str, words: str) -> None:
        with pytest.raises(OptionError, match=words):
            Pipelined(correction=text)

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda p: torch.optim.AdamW(p), "AdamW"),
            (lambda p: torch.optim.SGD(p, lr=0.1), "SGD without momentum"),
            (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), "SGD with nesterov"),
            (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5), "SGD with dampening"),
        ],
    )
    @pytest.mark.parametrize("correction", ["spike", "predict:linear", "predict:momentum+spike"])
    def test_optimizers_without_plain_momentum(self, make: Any, words: str, correction: str) -> None:
        model = Chain(2)
        with pytest.raises(OptionError, match=words):
            Pipelined(correction=correction).bind(model, half_square, make(model.parameters()))

    def test_dc_asgd_with_accumulation(self) -> None:
        model = Chain(2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with pytest.raises(OptionError, match="accumulate=2"):
            Pipelined(correction="dc-asgd", accumulate=2).bind(model, half_square, optimizer)

    def test_pipemare_without_a_length(self) -> None:
        model = Chain(2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        step = Pipelined(correction="pipemare", cuts=["layers.1"]).bind(model, half_square, optimizer)
        with pytest.raises(OptionError, match="how long the run is"):
            step(torch.ones(1, 1, dtype=torch.double), torch.ones(1, 1, dtype=torch.double))
        step.close()


def test_a_larger_effective_step_is_said_before_training() -> None:
    events: list[Event] = []
    model = Chain(4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    strategy = Pipelined(cuts=["layers.1", "layers.2", "layers.3"], correction="spike", engine="inline")
    with strategy.bind(model, half_square, optimizer, sink=events.append) as step:
        step(torch.ones(1, 1, dtype=torch.double), torch.ones(1, 1, dtype=torch.double))
    messages = [e.data["message"] for e in events if e.kind == "warning"]
    assert len(messages) == 1 and "4.7" in messages[0] and "diverged" in messages[0]
    assert not Corrections.parse("spike").warnings((1.0, 0.0), 0.9)
    assert not Corrections.parse("stage-lr").warnings((6.0,), 0.9)


@pytest.mark.parametrize(
    ("correction", "words"),
    [("spike", "correction 'spike' changes the effective step"), (None, "clock='1f1b' or accumulate=4")],
)
def test_a_run_that_falls_apart_names_what_to_look_at(correction: str | None, words: str) -> None:
    model = Chain(2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e30, momentum=0.9)
    strategy = Pipelined(cuts=["layers.1"], correction=correction)
    trainer = Trainer(model, half_square, optimizer, strategy=strategy)
    batch = torch.ones(4, 1, dtype=torch.double)
    with pytest.raises(Diverged) as caught:
        trainer.fit([(batch, 2 * batch)] * 40)
    assert words in str(caught.value.hint)
    assert "lower the learning rate" in str(caught.value.hint)
