"""The backward pass reads the weights as they are then, in every precision, and nothing is stashed unseen."""

from __future__ import annotations

from contextlib import nullcontext
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from convoy.errors import WorkerFailed
from convoy.graph.capture import capture
from convoy.graph.split import split
from convoy.strategies.base import Settings
from convoy.strategies.pipelined import Pipelined
from convoy.strategies.pipelined.current import CurrentWeights
from convoy.strategies.pipelined.derived import derived_parameters


class Twice(nn.Module):
    """A weight that is used twice, once transposed by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.mm(F.linear(x, self.weight), self.weight.t())


LAYERS = {
    "conv": (lambda: nn.Conv2d(8, 6, 3, padding=1), (2, 8, 5, 5)),
    "conv without bias": (lambda: nn.Conv2d(8, 6, 3, bias=False), (2, 8, 5, 5)),
    "conv channels last": (lambda: nn.Conv2d(8, 6, 3).to(memory_format=torch.channels_last), (2, 8, 5, 5)),
    "grouped conv": (lambda: nn.Conv2d(8, 8, 3, groups=4), (2, 8, 5, 5)),
    "transposed conv": (lambda: nn.ConvTranspose2d(8, 6, 3), (2, 8, 5, 5)),
    "conv 1d": (lambda: nn.Conv1d(8, 6, 3), (2, 8, 7)),
    "linear": (lambda: nn.Linear(8, 6), (4, 8)),
    "linear without bias": (lambda: nn.Linear(8, 6, bias=False), (4, 8)),
    "linear on sequences": (lambda: nn.Linear(8, 6), (2, 3, 8)),
    "weight used twice": (Twice, (4, 8)),
    "batch norm": (lambda: nn.BatchNorm2d(8), (2, 8, 5, 5)),
    "layer norm": (lambda: nn.LayerNorm(8), (4, 8)),
    "prelu": (lambda: nn.PReLU(8), (2, 8, 5)),
}


def autocast(precision: str) -> Any:
    if precision == "float32":
        return nullcontext()
    return torch.autocast("cpu", torch.bfloat16, cache_enabled=False)


def input_gradient(layer: nn.Module, x: Tensor, g: Tensor, precision: str) -> Tensor:
    with autocast(precision):
        out = layer(x)
    return torch.autograd.grad(out, x, g.to(out.dtype))[0]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_input_gradient_uses_the_weights_of_the_backward(name: str, precision: str) -> None:
    """What these layers need of their input does not depend on the weights, so the right answer is the input gradient
    of a forward pass with the new ones."""
    torch.manual_seed(0)
    build, shape = LAYERS[name]
    layer = build()
    x = torch.randn(shape, requires_grad=True)
    with autocast(precision), CurrentWeights(layer.parameters()).hooks():
        out = layer(x)
    g = torch.randn_like(out)
    old = input_gradient(layer, x, g, precision)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(torch.rand_like(p) + 0.5)
    got = torch.autograd.grad(out, x, g)[0]
    new = input_gradient(layer, x, g, precision)
    assert not torch.equal(old, new), "the change of the weights has to matter"
    assert torch.equal(got, new)


class Three(nn.Module):
    """Two linear layers in the first stage, so that its weight gradients depend on an input gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(5, 5, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("engine", ["threads", "inline"])
def test_a_whole_pipeline_by_hand(precision: str, engine: str) -> None:
    """K = 1: forward of t at stage 1 with version max(0, t - 2), backward with version t, in the precision of autocast;
    stage 2 is never stale. Squared error over four samples."""
    torch.manual_seed(0)
    model = Three()
    data = [(torch.randn(4, 5), torch.randn(4, 5)) for _ in range(6)]
    low = torch.float32 if precision == "float32" else torch.bfloat16
    a, b, c = ([p.detach().clone()] for p in model.parameters())  # versions
    for t, (x, y) in enumerate(data):
        old_a, old_b = a[max(0, t - 2)], b[max(0, t - 2)]
        first = F.linear(x.to(low), old_a.to(low))
        second = F.linear(first, old_b.to(low))
        leaf = F.linear(second, c[t].to(low)).requires_grad_()
        g_out = torch.autograd.grad(F.mse_loss(leaf.float(), y), leaf)[0]
        g_second = g_out.mm(c[t].to(low))
        g_first = g_second.mm(b[t].to(low))  # version t, not the one of the forward
        c.append(c[t] - 0.1 * g_out.t().mm(second).float())
        b.append(b[t] - 0.1 * g_second.t().mm(first).float())
        a.append(a[t] - 0.1 * g_first.t().mm(x.to(low)).float())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    strategy = Pipelined(cuts=["c"], engine=engine)
    loss = lambda output, target: F.mse_loss(output.float(), target)  # noqa: E731
    with strategy.bind(model, loss, optimizer, settings=Settings(precision=precision)) as step:
        for x, y in data:
            step(x, y)
    for parameter, versions in zip(model.parameters(), (a, b, c), strict=True):
        assert parameter.dtype is torch.float32
        torch.testing.assert_close(parameter.detach(), versions[-1], rtol=1e-6, atol=1e-7)


class Scaled(nn.Module):
    """A weight that is computed in the forward pass, without any parametrization."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.randn(5, 5)), nn.Parameter(torch.ones(5, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale)


@pytest.mark.parametrize(
    "derived",
    [
        lambda: parametrizations.weight_norm(nn.Linear(5, 5)),
        lambda: parametrizations.orthogonal(nn.Linear(5, 5)),
        Scaled,
    ],
    ids=["weight_norm", "orthogonal", "by hand"],
)
def test_weights_computed_in_the_forward_are_reported(derived: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(derived(), nn.ReLU(), nn.Linear(5, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Pipelined(cuts=["2"]).bind(model, F.cross_entropy, optimizer) as step:
        for _ in range(5):
            step(torch.randn(4, 5), torch.randint(3, (4,)))
        notes = " ".join(step.plan().notes)
    assert "stash" in notes


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "derived",
    [
        lambda: parametrizations.weight_norm(nn.Linear(5, 5)),
        lambda: parametrizations.spectral_norm(nn.Linear(5, 5)),
        lambda: nn.Sequential(nn.Linear(5, 5), parametrizations.weight_norm(nn.Linear(5, 5))),
        Scaled,
    ],
    ids=["weight_norm", "spectral_norm", "below", "by hand"],
)
def test_what_is_stashed_is_stashed_whole(derived: Any, precision: str) -> None:
    """The gradients are those of the old weights, not of a mixture: an update in between changes nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(derived())
    x = torch.randn(4, 5, requires_grad=True)
    (segment,) = split(capture(model, (x,)), [])
    parameters = list(derived_parameters(segment.module))
    hooks = CurrentWeights(model.parameters(), derived=parameters).hooks
    found = []
    for update in (False, True):
        state = {k: v.clone() for k, v in model.state_dict().items()}
        with autocast(precision), hooks():
            out = segment.module(x)
        with torch.no_grad():
            for p in parameters if update else ():
                p.add_(torch.rand_like(p) + 0.5)
        found.append(torch.autograd.grad(out.float().square().sum(), (x, *parameters)))
        model.load_state_dict(state)
    assert all(map(torch.equal, *found))


def test_ordinary_parameters_are_not_derived() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.PReLU(), nn.Flatten(), nn.Linear(12, 2))
    (segment,) = split(capture(model, (torch.randn(2, 2, 4, 4),)), [])
    assert derived_parameters(segment.module) == []


def test_ordinary_weights_are_not_reported() -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    with Pipelined(cuts=["2"]).bind(model, F.cross_entropy, torch.optim.SGD(model.parameters(), 0.1)) as step:
        step(torch.randn(4, 5), torch.randint(3, (4,)))
        assert step.plan().notes == ()


class Spoiled(nn.Module):
    """Changes what sigmoid saved for its backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sigmoid(self.low(x))
        y.mul_(2.0)
        return self.high(y)


@pytest.mark.parametrize("cuts", [[], ["high"]])
@pytest.mark.parametrize("engine", ["threads", "inline"])
def test_a_saved_activation_that_is_changed_in_place_stops_the_run(cuts: list[str], engine: str) -> None:
    """As plain PyTorch would, and with stage and batch named."""
    model = Spoiled()
    x, y = torch.randn(4, 5), torch.randint(3, (4,))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        F.cross_entropy(model(x), y).backward()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    strategy = Pipelined(cuts=cuts, engine=engine)
    with (
        pytest.raises(WorkerFailed, match=r"backward of batch 0 at stage 1: RuntimeError: .*(changed in|inplace)") as e,
        strategy.bind(model, F.cross_entropy, optimizer) as step,
    ):
        for _ in range(5):
            step(x, y)
        step.drain()
    assert e.value.action == "B1.0" and ">B1.0<" in e.value.grid


def test_a_batch_that_the_caller_writes_to_too_early_stops_the_run(runs: ModuleType) -> None:
    """The caller's tensor is what the first layer saved."""
    model = runs.Chain(3, 0.0, False)
    x, y = runs.batches([4])[0]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    step = Pipelined(cuts=["5"], engine="inline").bind(
        model, F.cross_entropy, optimizer, settings=Settings(channels_last=False)
    )
    with pytest.raises(WorkerFailed, match="backward of batch 0 at stage 1"):
        for _ in range(4):
            step(x, y)
            x.normal_()
    step.close()
