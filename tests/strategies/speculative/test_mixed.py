"""The lower part's gradient is that of the mixed signal: exact rows of rejected samples, predicted rows of others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from convoy.strategies.speculative import Speculative
from convoy.strategies.speculative.acceptance import by_signal


class Watched(nn.Module):
    """The plain net in two parts, so that the signal at the cut can be read and replaced."""

    def __init__(self, net: nn.Sequential, at: int) -> None:
        super().__init__()
        self.lower, self.upper = net[:at], net[at:]

    def signals(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The value at the cut, still attached, and the exact signal there (of the samples' own losses)."""
        value = self.lower(x)
        leaf = value.detach().requires_grad_()
        nn.functional.cross_entropy(self.upper(leaf), y).backward()
        return value, leaf.grad * x.shape[0]


@pytest.mark.parametrize(("threshold", "some"), [(1e-6, False), (0.99, True), (1.01, True), (float("inf"), False)])
@pytest.mark.parametrize("predictor", ["label-last", "zero"])
def test_against_autograd(train: Any, images: Any, net: Any, predictor: str, threshold: float, some: bool) -> None:
    """One exact mini-batch at a rate of zero to learn from, then a speculated one."""
    (x0, y0), (x, y) = data = images((8, 8))

    def still(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.0)

    reference = Watched(net("plain"), 5)
    _, learned = reference.signals(x0, y0)
    reference.zero_grad()
    value, exact = reference.signals(x, y)
    guess = torch.zeros_like(exact)
    if predictor == "label-last":
        for signal, label in zip(learned, y0, strict=True):
            guess[y == label] = signal
    selection = by_signal(None if predictor == "zero" else guess, exact, threshold)
    value.backward(selection.mixed(guess, selection.rows(exact)) / 8)

    strategy = Speculative(cut=2, predictor=predictor, threshold=threshold, warmup=1, controller="always")
    got = train(strategy, "plain", data, optimizer=still)
    assert (0 < selection.rejected < 8) == some
    assert got.events[-1].data["set"] == selection.code
    for name, parameter in got.model.named_parameters():
        number = int(name.split(".")[0])
        part = reference.lower[number] if number < 5 else reference.upper[number - 5]
        expected = part.get_parameter(name.split(".")[1]).grad
        # Sums in another order: differences of rows are added to the gradient of all.
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("threshold", [1.55, 1.65])
def test_batch_norm_of_the_rejected_samples_alone(train: Any, images: Any, net: Any, threshold: float) -> None:
    """Confident samples are left out: of what BatchNorm would send to them, nothing goes on, and the others get what
    autograd gives where those have no signal."""
    data = images((16, 16))
    reference = net("norm")
    x, y = data[1]
    logits: list[torch.Tensor] = []
    rejected: list[torch.Tensor] = []

    def masked(grad: torch.Tensor) -> torch.Tensor:
        return grad * rejected[0].view(-1, 1, 1, 1)

    for norm in (reference.norm, reference.inner_norm):
        norm.register_forward_pre_hook(lambda module, inputs: inputs[0].register_hook(masked) and None)
    reference(data[0][0])
    logits.append(reference(x))
    signal = (logits[0].softmax(1) - nn.functional.one_hot(y, logits[0].shape[1])).detach()
    rejected.append(signal.abs().sum(1) >= threshold)
    logits[0].backward(signal * rejected[0].view(-1, 1) / 16)

    strategy = Speculative(form="faithful", predictor="zero", threshold=threshold, warmup=1, controller="always")
    got = train(strategy, "norm", data, optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.0))
    assert 0.0 < got.events[-1].data["accepted"] < 1.0
    assert got.events[-1].data["accepted"] == 1.0 - float(rejected[0].float().mean())
    for (name, expected), parameter in zip(reference.named_parameters(), got.model.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_what_is_unbiased_makes_up_for_the_samples_that_are_left_out(train: Any, images: Any) -> None:
    """ĝ = h + b/(1 − ρ)(g − h), averaged over the draws, is g."""
    data = images((8, 8))

    def still(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.0)

    def gradient(predictor: str, warmup: int, seed: int, threshold: float | None = None) -> torch.Tensor:
        fields: dict[str, Any] = {"predictor": predictor, "threshold": threshold}
        strategy = Speculative(cut=2, **fields, warmup=warmup, controller="always")
        got = train(strategy, "plain", data, optimizer=still, seed=seed)
        grad: torch.Tensor = got.model.get_submodule("2").weight.grad
        return grad

    exact, start = gradient("zero", 2, 0), gradient("label-last", 2, 0)
    assert torch.equal(exact, start)
    drawn = torch.stack([gradient("unbiased:label-last:0.5", 1, seed) for seed in range(40)])
    dithered = torch.stack([gradient("dithered:label-last", 1, seed, 2.0) for seed in range(40)])
    left_out = torch.stack([gradient("random:0.5", 1, seed) for seed in range(40)])
    spread = drawn.std(0).norm() / 40**0.5
    assert (drawn.mean(0) - exact).norm() < 3 * spread
    assert 0 < (dithered.mean(0) - exact).norm() < 3 * dithered.std(0).norm() / 40**0.5
    assert (left_out.mean(0) - 0.5 * exact).norm() < 0.25 * exact.norm()
    assert (left_out.mean(0) - exact).norm() > 0.3 * exact.norm()
