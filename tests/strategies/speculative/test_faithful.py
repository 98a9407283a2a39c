"""The faithful form beside the same written by hand, what it remembers, what waits for what, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.grad import conv2d_input, conv2d_weight

from convoy.errors import ModelError, OptionError
from convoy.graph.rules.table import RULES
from convoy.models import build
from convoy.strategies.base import Settings
from convoy.strategies.speculative import Speculative
from convoy.strategies.speculative.outcomes import KINDS
from convoy.strategies.speculative.step import SpeculativeStep


def still(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.0)


class ByHand:
    """conv 0, relu 1, conv 2, relu 3, max pool 4, conv 5, leaky relu 6, mean 7, flatten 8, linear 9, written out."""

    def __init__(self, net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        self.w = {n: net.get_submodule(n).weight.detach() for n in "0259"}
        bias = {n: net.get_submodule(n).bias.detach() for n in "0259"}
        self.x, self.n = x, len(y)
        self.a1 = torch.conv2d(x, self.w["0"], bias["0"], padding=1).relu()
        self.a3 = torch.conv2d(self.a1, self.w["2"], bias["2"], padding=1).relu()
        self.a4, self.best = torch.nn.functional.max_pool2d(self.a3, 2, return_indices=True)
        self.a6 = torch.nn.functional.leaky_relu(torch.conv2d(self.a4, self.w["5"], bias["5"], padding=1), 0.1)
        self.features = self.a6.mean((2, 3))
        self.softmax = torch.softmax(self.features @ self.w["9"].t() + bias["9"], 1)
        self.error = self.softmax - torch.nn.functional.one_hot(y, 5)

    def decided(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.a1 > 0, self.a3 > 0, self.best, self.a6 > 0

    def signals(self, error: torch.Tensor, decided: Any) -> dict[str, torch.Tensor]:
        """Of the outputs of the layers with weights, sent back by these outcomes."""
        m1, m3, best, m6 = decided
        d9 = error / self.n
        d5 = (d9 @ self.w["9"])[:, :, None, None].expand_as(self.a6) / 9 * torch.where(m6, 1.0, 0.1)
        d4 = conv2d_input(self.a4.shape, self.w["5"], d5, padding=1)
        d3 = torch.nn.functional.max_unpool2d(d4, best, 2)
        d2 = d3 * m3
        d0 = conv2d_input(self.a1.shape, self.w["2"], d2, padding=1) * m1
        return {"0": d0, "2": d2, "5": d5, "9": d9}

    def gradients(self, signals: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        inputs = {"0": self.x, "2": self.a1, "5": self.a4}
        found = {n: conv2d_weight(a, self.w[n].shape, signals[n], padding=1) for n, a in inputs.items()}
        return {**found, "9": signals["9"].t() @ self.features}


@pytest.mark.parametrize("threshold", [2.1, 0.05])
def test_against_the_same_by_hand(train: Any, images: Any, net: Any, threshold: float) -> None:
    """All layers from memory; at the lower threshold some of the samples are rejected."""
    data = images((8, 8))
    first, second = (ByHand(net("plain"), *batch) for batch in data)
    y0, y = data[0][1], data[1][1]
    # The last sample of the same label; a label not seen keeps anything, since it is rejected.
    last = torch.tensor([max((i for i in range(8) if y0[i] == label), default=0) for label in y])
    seen = torch.tensor([bool((y0 == label).any()) for label in y])
    near = (first.softmax[last] - second.softmax).abs().sum(1) < threshold
    accepted = (near & seen).reshape(-1, 1)
    assert bool(seen.any()) and (threshold == 2.1 or 0 < int(accepted.sum()) < 8)

    guess = second.signals(first.error[last], [m[last] for m in first.decided()])
    exact = second.signals(second.error, second.decided())
    mixed = {n: torch.where(accepted.view(-1, *[1] * (g.dim() - 1)), g, exact[n]) for n, g in guess.items()}
    expected = second.gradients(mixed)

    strategy = Speculative(
        form="faithful", predictor="label-last", cut="1", threshold=threshold, warmup=1, controller="always"
    )
    got = train(strategy, "plain", data, optimizer=still)
    assert int(got.events[-1].data["set"], 16) == sum(1 << i for i in range(8) if accepted[i])
    assert got.plan.remembered == ("_1", "_2", "_3", "_4", "_5", "_6", "_7", "_8", "_9")
    for name, gradient in expected.items():
        torch.testing.assert_close(got.model.get_submodule(name).weight.grad, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("cut", [None, "5"])
def test_confident_samples_are_left_out(train: Any, images: Any, net: Any, cut: str | None) -> None:
    """Predictor zero: who is near the label gives nothing to any gradient, and nothing is remembered or sent back."""
    if cut is not None:
        with pytest.raises(OptionError, match="cut is '5', but predictor 'zero' remembers no outcomes"):
            Speculative(form="faithful", predictor="zero", cut=cut)
        return
    ((x, y),) = images((8,))
    by_hand = ByHand(net("plain"), x, y)
    distance = by_hand.error.abs().sum(1)
    threshold = float(distance.sort().values[3:5].mean())  # four of them are nearer
    kept = (distance >= threshold).float()[:, None]
    exact = by_hand.signals(by_hand.error * kept, by_hand.decided())

    strategy = Speculative(form="faithful", predictor="zero", threshold=threshold, warmup=1, controller="always")
    got = train(strategy, "plain", [(x, y), (x, y)], optimizer=still)
    assert got.measures[-1]["accepted"] == 0.5 and got.plan.remembered == () and got.plan.memory_bytes == 0
    assert "nothing remembered" in got.plan.table()
    assert not any(e.kind == "action" and e.name.startswith(("P", "I~")) for e in got.events)
    for name, gradient in by_hand.gradients(exact).items():
        torch.testing.assert_close(got.model.get_submodule(name).weight.grad, gradient, rtol=1e-4, atol=1e-6)


def test_who_is_left_out_is_asked_of_the_loss_not_of_the_softmax(images: Any) -> None:
    """With smoothed labels a sure sample still has an error: ‖p − (0.9 e_c + 0.02)‖₁."""
    torch.manual_seed(0)
    model, loss = nn.Sequential(nn.Flatten(), nn.Linear(108, 5)), nn.CrossEntropyLoss(label_smoothing=0.1)
    ((x, y),) = images((16,))
    again: Any = {}
    target = 0.9 * torch.nn.functional.one_hot(y, 5) + 0.02
    distance = (torch.softmax(model(x), 1).detach() - target).abs().sum(1)
    threshold = float(distance.median())
    strategy = Speculative(form="faithful", predictor="zero", threshold=threshold, warmup=1, controller="always")
    with strategy.bind(model, loss, still(model), settings=Settings(threads=1)) as step:
        for _ in range(2):
            again = step(x, y).measures
    assert abs(again["accepted"] - float((distance < threshold).float().mean())) <= 1 / 16
    assert again["distance"] == pytest.approx(float(distance.mean()), rel=1e-4)


def test_leaving_out_needs_no_outcomes_of_layers(images: Any) -> None:
    """GELU remembers nothing, and with predictor zero nothing is asked of it but its rows."""
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.GELU(), nn.Flatten(), nn.Linear(96, 5))
    strategy = Speculative(form="faithful", predictor="zero", threshold=1.9, warmup=1, controller="always")
    with strategy.bind(model, nn.CrossEntropyLoss(), still(model)) as step:
        modes = [step(*batch).measures["mode"] for batch in images((4, 4))]
    assert modes == ["exact", "speculate"]


def test_from_the_planned_layer_down_true_outcomes_are_used(train: Any, images: Any, net: Any) -> None:
    data = images((8, 8))
    first, second = (ByHand(net("plain"), *batch) for batch in data)
    y0, y = data[0][1], data[1][1]
    last = torch.tensor([max((i for i in range(8) if y0[i] == label), default=0) for label in y])
    seen = torch.tensor([bool((y0 == label).any()) for label in y]).reshape(-1, 1)
    decided = [*second.decided()[:3], first.decided()[3][last]]  # true below the third convolution
    guess, exact = second.signals(first.error[last], decided), second.signals(second.error, second.decided())
    mixed = {n: torch.where(seen.view(-1, *[1] * (g.dim() - 1)), g, exact[n]) for n, g in guess.items()}
    strategy = Speculative(
        form="faithful", predictor="label-last", cut="5", threshold=2.1, warmup=1, controller="always"
    )
    got = train(strategy, "plain", data, optimizer=still)
    for name, gradient in second.gradients(mixed).items():
        torch.testing.assert_close(got.model.get_submodule(name).weight.grad, gradient, rtol=1e-4, atol=1e-6)


def test_what_is_sent_back_from_memory_waits_for_no_forward_pass(images: Any, net: Any) -> None:
    model, events = net("skip"), []
    strategy = Speculative(form="faithful", predictor="label-last", threshold=2.1, warmup=1, controller="always")
    step = SpeculativeStep(
        strategy, model, nn.CrossEntropyLoss(), still(model), Settings(threads=1), events.append, keep_schedule=True
    )
    with step:
        for x, y in images((6, 6)):
            step(x, y)
    actions = [a for _, a in step.schedule if a.batch == 1]
    back = {a.subject[1:]: {r.name for r in a.reads} for a in actions if a.kind == "I" and a.subject[0] == "~"}
    remembered = set(step.plan().remembered)
    assert remembered & back.keys() and back.keys() - remembered
    for name, reads in back.items():
        assert (f"s.{name}" in reads) == (name not in remembered)
        assert not any(r.startswith("y.") for r in reads)
    assert {r.name for r in next(a for a in actions if a.kind == "P").reads} == {"t", "Mlogits"}
    # Weights are read as they are, before any update of this mini-batch.
    assert all(r.version == 1 for a in actions if a.subject[0] == "~" for r in a.reads if r.name[0] == "W")


def test_memory_is_packed_and_said_beforehand(train: Any, images: Any) -> None:
    elements = {"1": 6 * 36, "3": 6 * 36 * 8 // 6, "6": 8 * 9}
    choices, logits = 8 * 9, 5 * (8 * 5 + 1)
    bits = sum((count + 7) // 8 for count in elements.values())
    packed = train(Speculative(form="faithful", predictor="label-last", cut="1"), "plain", images((4,)))
    assert packed.plan.memory_bytes == 5 * (bits + choices) + logits
    counted = train(Speculative(form="faithful", cut="1", predictor="label-mean"), "plain", images((4,)))
    assert counted.plan.memory_bytes == 5 * (sum(elements.values()) + choices) + logits
    assert "0.9 kB" in packed.plan.table() and type(packed.plan).from_dict(packed.plan.to_dict()) == packed.plan
    with pytest.raises(OptionError, match=r"take 0.9 kB, and memory is 0.5 kB"):
        train(Speculative(form="faithful", predictor="label-last", cut="1", memory=500), "plain", images((4,)))


def test_majorities_and_means(train: Any, images: Any, net: Any) -> None:
    """With label-mean, what a label's samples agree on is kept: the same batch again is accepted, and half agrees."""
    data = images((8,)) * 7
    strategy = Speculative(form="faithful", predictor="label-mean", threshold=0.2, warmup=4, controller="always:2")
    got = train(strategy, "plain", data, optimizer=still)
    probes = [d for name, _, d in got.decisions if name == "probe"]
    assert len(probes) == 2 and all(p["accepted"] == 1.0 and p["agreement"] > 0.5 for p in probes)


def test_kinds_that_are_known_are_kinds_of_rules() -> None:
    assert set(RULES) >= KINDS


@pytest.mark.parametrize("name", ["resnet20", "vgg16", "plain6", "densenet121"])
def test_published_networks_are_taken(name: str) -> None:
    """Also with shortcuts that slice and pad: one mini-batch exactly, one speculated."""
    model = build(name, image_size=32, seed=0)
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(2, 3, 32, 32, generator=generator), torch.tensor([1, 2])
    strategy = Speculative(
        form="faithful", predictor="label-last", threshold=2.1, warmup=1, controller="always", memory="4GB"
    )
    with strategy.bind(model, nn.CrossEntropyLoss(), still(model), settings=Settings(threads=1)) as step:
        measures = [step(*batch).measures for _ in range(2)]
    assert measures[1]["accepted"] == 1.0 and step.plan().remembered
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("layer", [nn.GELU(), nn.GroupNorm(2, 6), nn.Softplus()])
def test_layers_that_remember_nothing_are_refused_by_name(images: Any, layer: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), layer, nn.Flatten(), nn.Linear(96, 5))
    with (
        Speculative(form="faithful", predictor="label-last").bind(model, nn.CrossEntropyLoss(), still(model)) as step,
        pytest.raises(ModelError, match=r"layer 2 of kind .* has no outcome to remember"),
    ):
        step(*images((4,))[0])
