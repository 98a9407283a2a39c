from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from convoy.errors import DataError, OptionError
from convoy.graph.capture import capture
from convoy.graph.cost import measure
from convoy.graph.cost_passes import robust, undisturbed
from convoy.graph.estimate import estimate, estimate_saved
from convoy.graph.graph import Cost, Graph
from convoy.graph.machine import Machine
from convoy.graph.random import keyed
from convoy.graph.split import allowed_cuts, split
from convoy.graph.timed_pass import Times


class Net(nn.Module):
    """A residual block with all that may go wrong: in-place writes, dropout, a frozen and a functional layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU(inplace=True)
        self.first = nn.Conv2d(8, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1).requires_grad_(False)
        self.kernel = nn.Parameter(torch.randn(8, 8, 3, 3) * 0.1)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.stem(x)))
        y = self.second(F.relu(self.first(x)))
        y = F.conv2d(x + y, self.kernel, padding=1)
        return self.last(self.drop(y).mean((2, 3)))


def batch(n: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(n) % 10


def costs(graph: Graph) -> dict[str, Cost]:
    return {node.name: node.cost for node in graph.nodes if node.cost is not None}


# --- the model stays as it was ---------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_nothing_of_the_users_changes(precision: str) -> None:
    model, (x, y) = Net(), batch()
    model.last = nn.utils.parametrizations.spectral_norm(model.last)  # has buffers that every forward pass moves
    model.drop.eval()
    model.first.weight.grad = torch.full_like(model.first.weight, 7.0)
    graph = capture(model, (x,))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    versions = {name: t._version for name, t in model.state_dict(keep_vars=True).items()}
    flags = [m.training for m in model.modules()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy(), torch.get_num_threads()
    measure(graph, (x,), loss=F.cross_entropy, target=y, repeats=2, threads=2, precision=precision)
    after = model.state_dict(keep_vars=True)
    assert before.keys() == after.keys()
    assert all(torch.equal(t, after[name]) for name, t in before.items())
    assert versions == {name: t._version for name, t in after.items()}
    assert flags == [m.training for m in model.modules()]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])
    assert torch.get_num_threads() == states[3]
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert list(grads) == ["first.weight"]
    assert torch.equal(grads["first.weight"], torch.full_like(grads["first.weight"], 7.0))
    assert not x.requires_grad


# --- whose time it is ------------------------------------------------------------------------------------------


class Sleepy(nn.Module):
    """Sleeps in forward and in backward. ``pauses`` is asked anew in every forward pass."""

    def __init__(self, pauses: Callable[[], tuple[float, float]]) -> None:
        super().__init__()
        self.pauses = [pauses]

    def forward(self, x: Tensor) -> Tensor:
        forward, backward = self.pauses[0]()
        time.sleep(forward)
        y = x * 2.0
        if y.requires_grad:
            y.register_hook(lambda grad: time.sleep(backward))
        return y * 2.0


def test_time_goes_to_the_node_that_takes_it() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), Sleepy(lambda: (0.05, 0.1)), nn.ReLU(), nn.Conv2d(4, 4, 3))
    x, _ = batch()
    graph = capture(model, (x,))
    profile = measure(graph, (x,), repeats=3)
    sleepy = next(node for node in profile.graph.nodes if node.path == "2")
    assert sleepy.cost is not None
    assert 0.045 <= sleepy.cost.forward_seconds < 0.09
    assert 0.095 <= sleepy.cost.input_grad_seconds < 0.15
    assert sleepy.cost.weight_grad_seconds == 0.0
    others = [cost.seconds for name, cost in costs(profile.graph).items() if name != sleepy.name]
    assert max(others) < 0.03
    assert profile.seconds == pytest.approx(min(profile.step_seconds), rel=0.2)


def test_a_disturbed_pass_is_dropped() -> None:
    pauses: list[float] = []
    layer = Sleepy(lambda: (pauses.pop(0) if pauses else 0.0, 0.0))
    model, (x, _) = nn.Sequential(nn.Conv2d(3, 4, 3), layer), batch()
    graph = capture(model, (x,))
    pauses += [0.0, 0.15, 0.6, 0.15, 0.6, 0.15]  # the first pass, then five that count
    profile = measure(graph, (x,), repeats=5)
    assert (profile.passes, profile.dropped) == (3, 2)
    assert 0.15 <= profile.seconds < 0.25


def test_loss_is_on_the_account_of_the_output() -> None:
    def slow_loss(output: Tensor, target: Tensor) -> Tensor:
        time.sleep(0.02)
        return F.cross_entropy(output, target)

    model, (x, y) = Net(), batch()
    graph = capture(model, (x,))
    profile = measure(graph, (x,), loss=slow_loss, target=y, repeats=2)
    output = profile.graph.nodes[-1].cost
    assert output is not None and output.forward_seconds >= 0.02
    without = measure(graph, (x,), repeats=2).graph.nodes[-1].cost
    assert without is not None and without.forward_seconds < 0.01


def test_only_gradients_that_are_wanted_cost() -> None:
    model, (x, y) = Net(), batch()
    profile = measure(capture(model, (x,)), (x,), loss=F.cross_entropy, target=y, repeats=3)
    cost = costs(profile.graph)
    assert cost["stem"].input_grad_seconds == 0.0 < cost["stem"].weight_grad_seconds
    assert cost["second"].weight_grad_seconds == 0.0 < cost["second"].input_grad_seconds
    assert cost["act"].weight_grad_seconds == 0.0 < cost["act"].input_grad_seconds
    for name in ("first", "conv2d", "last"):  # a layer, a call with a weight of its own, a linear layer
        alone = profile.alone[name]
        assert min(alone.input_grad_seconds, alone.weight_grad_seconds, alone.joint_seconds) > 0.0
        share = alone.weight_grad_seconds / (alone.weight_grad_seconds + alone.input_grad_seconds)
        backward = cost[name].input_grad_seconds + cost[name].weight_grad_seconds
        assert cost[name].weight_grad_seconds == pytest.approx(share * backward)
    assert profile.alone.keys() == {"norm", "first", "conv2d", "last"}


def test_equal_layers_share_one_measurement() -> None:
    model = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(4)), nn.Conv2d(3, 3, 3, padding=1, stride=2))
    x, _ = batch()
    alone = measure(capture(model, (x,)), (x,), repeats=1).alone
    names = list(alone)
    assert len(names) == 4  # the first wants no input gradient
    assert alone[names[0]] is alone[names[1]] is alone[names[2]]
    assert alone[names[3]] is not alone[names[0]]


def test_a_frozen_model_has_no_backward_pass() -> None:
    model, (x, y) = Net().requires_grad_(False), batch()
    profile = measure(capture(model, (x,)), (x,), loss=F.cross_entropy, target=y, repeats=1)
    assert profile.backward_seconds(0, len(profile.graph.nodes)) == 0.0
    assert profile.saved_bytes(0, len(profile.graph.nodes)) == 0
    assert profile.seconds > 0.0


def test_budget_and_repeats() -> None:
    model, (x, _) = Net(), batch()
    graph = capture(model, (x,))
    assert (p := measure(graph, (x,), repeats=4)).passes + p.dropped == 4
    nothing = measure(graph, (x,), budget_seconds=0.0)
    assert (nothing.passes, nothing.dropped, nothing.alone) == (1, 0, {})
    halves = costs(nothing.graph)["first"]
    assert halves.input_grad_seconds == halves.weight_grad_seconds > 0.0
    slow = nn.Sequential(nn.Conv2d(3, 4, 3), Sleepy(lambda: (0.1, 0.0)))
    graph = capture(slow, (x,))
    start = time.perf_counter()
    assert 1 <= measure(graph, (x,), repeats=100, budget_seconds=0.5).passes <= 4
    assert time.perf_counter() - start < 1.5


def test_refusals() -> None:
    model, (x, _) = Net(), batch()
    graph = capture(model, (x,))
    with pytest.raises(OptionError, match="repeats is 0"):
        measure(graph, (x,), repeats=0)
    with pytest.raises(OptionError, match="threads is -1"):
        measure(graph, (x,), threads=-1)
    with pytest.raises(OptionError, match="'float16'"):
        measure(graph, (x,), precision="float16")
    with pytest.raises(DataError):
        measure(graph, (x, x))


def test_statistics() -> None:
    assert robust([4.0, 1.0, 2.0, 3.0, 5.0]) == 2.0
    times = [Times((t,), (0.0,)) for t in (1.2, 1.0, 1.31, 1.3)]
    assert undisturbed(times) == ([times[0], times[1], times[3]], 1)
    few = [Times((t,), (0.0,)) for t in (1.0, 9.0, 5.0, 7.0)]
    assert undisturbed(few) == ([few[0], few[2], few[3]], 1)
    assert undisturbed(few[:1]) == (few[:1], 0)


# --- what is kept ----------------------------------------------------------------------------------------------


@contextmanager
def counting(owned: list[Tensor]) -> Iterator[dict[int, int]]:
    """Bytes by address of everything saved meanwhile, except ``owned``; counted apart from the code under test."""
    found: dict[int, int] = {}
    kept = []
    skip = {t.untyped_storage().data_ptr() for t in owned}

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        if tensor.untyped_storage().data_ptr() not in skip:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        yield found


def test_saved_bytes_of_a_small_net_counted_by_hand() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5)
    )
    x, y = batch(2)
    profile = measure(capture(model, (x,)), (x,), loss=F.cross_entropy, target=y, repeats=1)
    image, features, pooled = 2 * 3 * 64 * 4, 2 * 4 * 36 * 4, 2 * 4 * 9
    by_path = {node.path: node.cost.saved_bytes for node in profile.graph.nodes if node.path and node.cost}
    assert by_path == {
        "0": image,
        "1": features + 2 * 4 * 4,  # its input, mean and deviation of 4 channels
        "2": features,  # its output
        "3": pooled * 8,  # indices; its input is kept already
        "4": 0,
        "5": pooled * 4,
    }
    linear = profile.graph.position[next(n.name for n in profile.graph.nodes if n.path == "5")]
    relu = profile.graph.position[next(n.name for n in profile.graph.nodes if n.path == "2")]
    assert profile.saved_bytes(linear, linear + 1) == pooled * 4
    assert profile.saved_bytes(relu + 1, linear) == pooled * 8 + features  # pooling keeps the input of its stage


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y = torch.sigmoid(self.norm(self.b(F.relu(x))))
        return self.c(self.drop(x + y) * y)


def test_saved_bytes_of_every_stage_are_what_the_stage_keeps() -> None:
    model, (x, _) = Residual(), batch()
    graph = capture(model, (x,))
    profile = measure(graph, (x,), repeats=1)
    for cut in allowed_cuts(graph):
        values: dict[str, Any] = graph.bind((x,))
        for segment, (start, stop) in zip(split(graph, [cut]), ((0, cut), (cut, len(graph.nodes))), strict=True):
            with keyed(0, 0), counting([*model.parameters(), *model.buffers()]) as found:
                result = segment.module(
                    *(values[name].detach() for name in segment.inputs if name == "x"),
                    *(values[name].detach().requires_grad_() for name in segment.inputs if name != "x"),
                )
            assert profile.saved_bytes(start, stop) == sum(found.values()), (cut, start)
            values.update(zip(segment.outputs, result, strict=False))


def test_casts_of_weights_are_not_kept() -> None:
    model, x = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)), torch.randn(2, 64)
    graph = capture(model, (x,))
    assert measure(graph, (x,), repeats=1).saved_bytes(0, len(graph.nodes)) == 2 * (2 * 64 * 4)
    halved = measure(graph, (x,), repeats=1, precision="bfloat16")
    assert halved.saved_bytes(0, len(graph.nodes)) == 2 * (2 * 64 * 2)


# --- operations, and estimates beside what was measured --------------------------------------------------------


class Various(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, groups=3)
        self.up = nn.ConvTranspose2d(6, 4, 3, groups=2)
        self.line = nn.Conv1d(4, 5, 3, padding=1)
        self.weight = nn.Parameter(torch.randn(7, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.line(self.up(F.relu(self.conv(x))).flatten(2))
        return F.linear(x.transpose(1, 2), self.weight) @ torch.ones(7, 2)


@pytest.mark.parametrize("kind", [Various, Residual])
def test_flops_of_products_equal_those_of_pytorch(kind: type[nn.Module]) -> None:
    model, (x, _) = kind(), batch()
    profile = measure(capture(model, (x,)), (x,), repeats=1)
    with FlopCounterMode(display=False) as counter:
        model(x)
    products = {"conv1d", "conv2d", "conv_transpose2d", "linear", "matmul"}
    found = sum(n.cost.flops for n in profile.graph.nodes if n.cost is not None and n.kind in products)
    assert found == counter.get_total_flops()
    assert next(n.cost for n in profile.graph.nodes if n.kind == "relu").flops > 0  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", [Net, Residual])
def test_estimated_bytes_are_those_measured(kind: type[nn.Module]) -> None:
    model, (x, _) = kind(), batch()
    graph = capture(model, (x,))
    measured, guessed = measure(graph, (x,), repeats=1), estimate(graph, Machine(1.0, 1.0, 1.0))
    assert [sum(dict(e).values()) for e in guessed.saved] == [sum(dict(e).values()) for e in measured.saved]
    for cut in range(len(graph.nodes)):
        assert guessed.saved_bytes(0, cut) == measured.saved_bytes(0, cut)
    assert estimate_saved(capture(model.requires_grad_(False), (x,))) == ((),) * len(graph.nodes)
