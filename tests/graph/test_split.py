"""Stages chained one after the other are the whole model, bit for bit, wherever the cuts fall."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from convoy.errors import ModelError
from convoy.graph.capture import capture
from convoy.graph.random import keyed
from convoy.graph.split import Segment, allowed_cuts, crossing, cut_after_layer, cut_at_module, split

CHANNELS = 4


@dataclass
class Output:
    logits: Tensor
    features: Tensor | None = None


class Drawn(nn.Module):
    """A net made of steps (name, which earlier value, which other one); values all have the same shape."""

    def __init__(self, steps: list[tuple[str, int, int]], output: str) -> None:
        super().__init__()
        self.steps, self.output = steps, output
        self.layers = nn.ModuleList([self._layer(name) for name, _, _ in steps])
        self.head = nn.Linear(CHANNELS, 3)

    @staticmethod
    def _layer(name: str) -> nn.Module:
        if name == "conv":
            return nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS))
        if name == "dense":
            return nn.Conv2d(2 * CHANNELS, CHANNELS, 1)
        kinds: dict[str, nn.Module] = {
            "relu": nn.ReLU(inplace=True),
            "dropout": nn.Dropout(0.3),
            "dropout inplace": nn.Dropout2d(0.3, inplace=True),
            "pool": nn.AvgPool2d(3, 1, 1),
        }
        return kinds.get(name, nn.Identity())

    def forward(self, x: Tensor) -> Any:
        values = [x * 1.5]
        for layer, (name, i, j) in zip(self.layers, self.steps, strict=True):
            a, b = values[-1 - i % len(values)], values[-1 - j % len(values)]
            if name in ("conv", "relu", "dropout", "dropout inplace", "pool", "identity"):
                new = layer(a)
            elif name == "dense":
                new = layer(torch.cat([a, b], 1))
            elif name == "add":
                new = a + b
            elif name == "iadd":
                a += b
                new = a
            elif name == "functional relu":
                new = F.relu_(a)
            elif name == "functional dropout":
                new = F.dropout(a, 0.2, self.training)
            elif name == "slice":
                new = a * 1.0
                new[:, 1:2] = b[:, :1]
            elif name == "view":
                new = a.view(a.shape[0], 2, -1, *a.shape[2:])
                new.mul_(0.5)
                new = new.flatten(1, 2)
            else:
                one, two = a.chunk(2, dim=1)
                new = torch.cat([two, one], 1)
            values.append(new)
        pooled = values[-1].mean((2, 3)).view(x.size(0), -1)
        logits = self.head(pooled)
        forms: dict[str, Any] = {
            "tensor": logits,
            "dict": {"logits": logits, "features": {"pooled": pooled, "none": None}},
            "dataclass": Output(logits, values[len(values) // 2].mean()),
            "tuple": (logits, [pooled]),
        }
        return forms[self.output]


STEPS = (
    *("conv", "relu", "add", "iadd", "dense", "pool", "identity", "functional relu", "dropout", "dropout inplace"),
    *("functional dropout", "slice", "view", "chunk"),
)


def leaves(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Output):
        return leaves([value.logits, value.features])
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [leaf for part in parts for leaf in leaves(part)]


def objective(output: Any) -> Tensor:
    return sum(
        ((leaf * torch.linspace(0.5, 2, leaf.numel()).view_as(leaf)).sum() for leaf in leaves(output)), torch.zeros(())
    )


def state(model: nn.Module) -> dict[str, Tensor]:
    found = {f"gradient of {n}": p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return found | {n: b.clone() for n, b in model.named_buffers()}


def run_stages(segments: tuple[Segment, ...], values: dict[str, Tensor]) -> Any:
    """Forward and backward stage by stage, each on leaves of its own, as workers do."""
    taken: list[tuple[dict[str, Tensor], tuple[Tensor, ...]]] = []
    store: dict[str, Tensor] = dict(values)
    result: Any = None
    for segment in segments:
        inputs = {n: store[n].detach().requires_grad_(store[n].requires_grad) for n in segment.inputs}
        result = segment.module(*inputs.values())
        taken.append((inputs, () if segment is segments[-1] else result))
        if segment is not segments[-1]:
            store.update(zip(segment.outputs, result, strict=True))
    gradients: dict[str, Tensor] = {}
    objective(result).backward()
    for segment, (inputs, outputs) in reversed(list(zip(segments, taken, strict=True))):
        pairs = [
            (o, gradients[n])
            for n, o in zip(segment.outputs, outputs, strict=True)
            if n in gradients and o.requires_grad  # what no weight has touched yet needs no gradient
        ]
        if pairs:
            torch.autograd.backward([o for o, _ in pairs], [g for _, g in pairs])
        for name, value in inputs.items():
            if value.grad is not None:
                gradients[name] = gradients[name] + value.grad if name in gradients else value.grad
    return result


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(
    steps=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=7),
    output=st.sampled_from(["tensor", "dict", "dataclass", "tuple"]),
    batch=st.integers(1, 3),
    data=st.data(),
)
def test_any_cut_of_any_net_gives_the_same_bits(
    steps: list[tuple[str, int, int]], output: str, batch: int, data: st.DataObject
) -> None:
    torch.manual_seed(0)
    model = Drawn(steps, output)
    random = any("dropout" in name for name, _, _ in steps)
    x = torch.randn(batch, CHANNELS, 4, 4)
    given_x = x.clone()
    try:
        objective(copy.deepcopy(model)(x)).backward()
    except RuntimeError:
        assume(False)  # autograd itself forbids some of the writes in place
    graph = capture(model, (torch.randn(2, CHANNELS, 4, 4),))
    start = copy.deepcopy(model.state_dict())

    def fresh() -> None:
        model.load_state_dict(start)
        model.zero_grad(set_to_none=True)

    with keyed(seed=3, batch=11):
        whole = graph.output.rebuild(graph.program(x))
    objective(whole).backward()
    expected = [leaf.detach().clone() for leaf in leaves(whole)], state(model)
    if not random:
        fresh()
        plain = model(x)
        objective(plain).backward()
        assert type(plain) is type(whole)
        assert all(map(torch.equal, leaves(plain), expected[0]))
        assert all(torch.equal(expected[1][n], t) for n, t in state(model).items())

    cuts = allowed_cuts(graph)
    chosen = sorted(data.draw(st.sets(st.sampled_from(cuts), max_size=3)) if cuts else [])
    for some in (chosen, *([cut] for cut in cuts[:: max(1, len(cuts) // 6)])):
        fresh()
        segments = split(graph, some)
        assert [n.name for s in segments for n in s.nodes] == [
            n.name for n in graph.nodes if n.kind not in ("input", "output")
        ]
        with keyed(seed=3, batch=11):
            result = run_stages(segments, graph.bind((x,)))
        assert type(result) is type(whole)
        assert all(torch.equal(a, b) for a, b in zip(leaves(result), expected[0], strict=True)), some
        for name, tensor in state(model).items():
            torch.testing.assert_close(tensor, expected[1][name], rtol=1e-5, atol=1e-5, msg=f"{name} with cuts {some}")
        assert torch.equal(x, given_x)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        z = self.conv2(self.relu(self.norm(self.conv1(y))))
        z += y
        z = self.relu(z)
        return self.fc(F.adaptive_avg_pool2d(z, 1).flatten(1))


def test_gradients_of_a_residual_block_cut_anywhere_are_exact() -> None:
    torch.manual_seed(0)
    model = Residual()
    graph = capture(model, (torch.randn(2, 3, 6, 6),))
    x = torch.randn(5, 3, 6, 6)
    start = copy.deepcopy(model.state_dict())
    objective(model(x)).backward()
    expected = state(model)
    for cut in allowed_cuts(graph):
        model.load_state_dict(start)
        model.zero_grad(set_to_none=True)
        run_stages(split(graph, [cut]), graph.bind((x,)))
        assert {n for n, t in state(model).items() if not torch.equal(t, expected[n])} == set(), cut


def test_a_skip_crosses_several_cuts_without_passing_through_the_stages_between() -> None:
    graph = capture(Residual(), (torch.randn(2, 3, 6, 6),))
    at = graph.position
    first, second, third = split(graph, [at["norm"], at["conv2"]])
    assert first.outputs == ("stem", "conv1") and "stem" not in second.inputs
    assert set(third.inputs) == {"stem", "relu"}
    assert crossing(graph, at["conv2"]) == ("stem", "relu")
    assert set(second.parameters) == {"norm.weight", "norm.bias"}
    assert set(second.buffers) == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}


def test_stages_share_the_users_parameters_and_modules() -> None:
    model = Residual()
    graph = capture(model, (torch.randn(2, 3, 6, 6),))
    for segment in split(graph, [graph.position["conv2"]]):
        for name, parameter in segment.parameters.items():
            assert parameter is model.get_parameter(name)
        assert all(any(p is q for q in model.parameters()) for p in segment.module.parameters())


def test_inplace_stays_as_written_inside_a_stage_and_not_at_its_border() -> None:
    graph = capture(Residual(), (torch.randn(2, 3, 6, 6),))
    (whole,) = split(graph, [])
    assert "add_(" in whole.module.code and whole.module.relu_1.inplace
    border = split(graph, [graph.position["add_"]])[1]
    assert "clone" in border.module.code
    border = split(graph, [graph.position["relu_1"]])[1]
    assert not border.module.relu_1.inplace
    assert graph.program.relu.inplace, "the user's module keeps its flag"


def test_the_whole_model_in_one_stage_returns_what_the_model_returns() -> None:
    graph = capture(Residual(), (torch.randn(2, 3, 6, 6),))
    (whole,) = split(graph, [])
    assert whole.inputs == ("x",) and whole.outputs == ()
    assert whole.module(torch.randn(7, 3, 6, 6)).shape == (7, 2)


def test_labels_go_straight_to_the_last_stage() -> None:
    class WithLoss(Residual):
        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = super().forward(x)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    graph = capture(WithLoss(), (), {"x": torch.randn(2, 3, 6, 6), "labels": torch.tensor([0, 1])})
    first, last = split(graph, [graph.position["conv2"]])
    assert first.inputs == ("x",) and "labels" in last.inputs
    assert "labels" not in crossing(graph, graph.position["conv2"])


def test_cut_after_layer_keeps_what_follows_with_the_layer() -> None:
    graph = capture(Residual(), (torch.randn(2, 3, 6, 6),))
    assert graph.nodes[cut_after_layer(graph, 2)].name == "conv2"
    assert graph.nodes[cut_after_layer(graph, 3)].name == "fc"


@pytest.mark.parametrize("layer", [0, 4, -1, 99])
def test_cut_after_a_layer_that_is_not_there_or_last(layer: int) -> None:
    graph = capture(Residual(), (torch.randn(2, 3, 6, 6),))
    with pytest.raises(ModelError, match=f"no cut after layer {layer}: Residual has layers 1 to 4"):
        cut_after_layer(graph, layer)


def test_cut_at_module() -> None:
    graph = capture(nn.Sequential(Residual(), nn.Linear(2, 2)), (torch.randn(2, 3, 6, 6),))
    assert graph.nodes[cut_at_module(graph, "0.conv2")].path == "0.conv2"
    assert graph.nodes[cut_at_module(graph, "1")].path == "1"
    with pytest.raises(ModelError, match=r"no module '0\.conv3'") as caught:
        cut_at_module(graph, "0.conv3")
    assert "'0.conv1'" in (caught.value.hint or "") or "'0.conv2'" in (caught.value.hint or "")
    with pytest.raises(ModelError, match="without work"):
        cut_at_module(graph, "0")


def test_cut_at_a_module_that_begins_with_a_function() -> None:
    class Act(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.relu(x))

    graph = capture(nn.Sequential(nn.Linear(3, 3), Act()), (torch.randn(2, 3),))
    assert graph.nodes[cut_at_module(graph, "1")].kind == "relu"


def test_a_functional_layer_takes_its_weights_along() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 3)
            self.weight = nn.Parameter(torch.randn(2, 3))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.first(x), self.weight / self.weight.norm())

    graph = capture(Functional(), (torch.randn(2, 3),))
    first, last = split(graph, [cut_after_layer(graph, 1)])
    assert set(first.parameters) == {"first.weight", "first.bias"} and set(last.parameters) == {"weight"}
    assert allowed_cuts(graph) == [cut_after_layer(graph, 1)]
    assert len(graph.derived_weights) == 1


def test_tied_weights_stay_in_one_stage() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
            self.c.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.c(self.b(self.a(torch.tanh(x)))))

    graph = capture(Tied(), (torch.randn(2, 3),))
    assert [graph.nodes[c].name for c in allowed_cuts(graph)] == ["a", "relu"]
    with pytest.raises(ModelError, match="a to c stay together"):
        split(graph, [graph.position["b"]])


def test_a_module_used_twice_stays_in_one_stage_only_if_it_has_weights() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.relu = nn.Linear(3, 3), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.fc(self.relu(self.fc(self.relu(x)))))

    graph = capture(Twice(), (torch.randn(2, 3),))
    assert [graph.nodes[c].name for c in allowed_cuts(graph)] == ["fc", "relu_2"]


def test_wrong_cuts() -> None:
    graph = capture(Residual(), (torch.randn(2, 3, 6, 6),))
    with pytest.raises(ModelError, match="have to ascend"):
        split(graph, [5, 3])
    for cut in (0, 1, len(graph.nodes) - 1, 1000):
        with pytest.raises(ModelError, match="without work"):
            split(graph, [cut])
