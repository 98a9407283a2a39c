"""Models as people really write them: captured, they compute what they computed before."""

from __future__ import annotations

import copy
import linecache
import random
import threading
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.graph.captured import Model, Output, assert_same_model, conv, images, run
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from convoy.errors import DataError, ModelError
from convoy.graph.capture import capture

Heads = namedtuple("Heads", ["main", "auxiliary"])


def remembers(m: Any, x: Tensor) -> Tensor:
    """Replaces a tensor that it keeps; the old one is freed while the model is being recorded."""
    y = m.conv(x)
    m.last = y.detach().mean()
    for _ in range(5):
        y = torch.tanh(y) * 0.5
    return m.conv2(y)


class DenseLayer(nn.Module):
    """As in torchvision: takes one tensor or the list of all before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(width), conv(width, 2)

    def forward(self, before: Tensor | list[Tensor]) -> Tensor:
        parts = [before] if isinstance(before, Tensor) else before
        return self.conv(F.relu(self.norm(torch.cat(parts, 1)), inplace=True))


class DenseBlock(nn.ModuleDict):
    def __init__(self) -> None:
        super().__init__()
        for i in range(3):
            self.add_module(f"layer{i}", DenseLayer(4 + 2 * i))

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for _, layer in self.items():
            features.append(layer(features))
        return torch.cat(features, 1)


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True)))))


def shuffle(m: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    assert c % 2 == 0, f"{c} channels cannot be shuffled"
    return m.conv(x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, -1, h, w))


def windows(m: Any, x: Tensor) -> Tensor:
    """Windows go into the batch dimension and come back."""
    b, c, *_ = x.size()
    y = x.unfold(2, 3, 3).unfold(3, 3, 3).permute(0, 2, 3, 1, 4, 5).reshape(b * 4, c, 3, 3)
    y = m.conv(y)
    assert y.shape[0] // 4 == b
    return y.view(y.shape[0] // 4, 4, -1).sum(1)


def early_exit(m: Any, x: Tensor) -> Any:
    y = F.relu(m.conv(x))
    heads = m.head(y.mean((2, 3))), None
    if m.training:
        heads = heads[0], m.extra(y.amax((2, 3)))
    return Heads(*heads)


def pyramid(m: Any, x: Tensor) -> list[Tensor]:
    low = F.max_pool2d(m.conv(x), 2)
    up = F.interpolate(low, size=x.shape[-2:], mode="nearest")
    return [low, m.conv2(torch.cat([up, x], dim=1))]


def made_inside(m: Any, x: Tensor) -> Tensor:
    grid = torch.arange(x.shape[-1], device=x.device, dtype=x.dtype)
    state = torch.zeros(x.shape[0], 4, 1, 1, device=x.device)
    noise_free = x.new_ones(x.shape[0], 1, 1, 1)
    mask = torch.ones(len(m.order), dtype=torch.bool)[: x.shape[1]].view(1, -1, 1, 1)
    return m.conv((x + grid + state) * noise_free * mask)


def slices(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    y[:, 0] = 0
    y[:, 1:3] += 1.5
    y[:, 3].mul_(2.0)
    y = torch.roll(y, 1, dims=1)
    return y


def several_results(m: Any, x: Tensor) -> dict[str, Tensor]:
    best = m.conv(x).flatten(2).max(dim=2)
    left, right = torch.split(best.values, 2, dim=1)
    mean, std = best[0].mean(), best.values.std()
    return {"sum": left + right, "index": best.indices, "norm": (left - mean) / std}


MODELS: dict[str, Callable[[], nn.Module]] = {
    "dense blocks": lambda: nn.Sequential(DenseBlock(), nn.Conv2d(10, 2, 1)),
    "squeeze and excitation": lambda: nn.Sequential(conv(), SqueezeExcite(), nn.Hardswish(inplace=True)),
    "channel shuffle": lambda: Model(shuffle, conv=conv()),
    "windows": lambda: Model(windows, conv=nn.Conv2d(4, 4, 3)),
    "auxiliary head": lambda: Model(early_exit, conv=conv(), head=nn.Linear(4, 3), extra=nn.Linear(4, 3)),
    "pyramid": lambda: Model(pyramid, conv=conv(), conv2=nn.Conv2d(8, 2, 1)),
    "tensors made inside": lambda: Model(made_inside, conv=conv(), order=[3, 1, 2, 0]),
    "slices": lambda: Model(slices, conv=conv()),
    "several results": lambda: Model(several_results, conv=conv()),
    "dataclass": lambda: Model(lambda m, x: Output(m.conv(x).sum((1, 2, 3))), conv=conv()),
    "nested output": lambda: Model(lambda m, x: {"a": [m.conv(x), (x.mean(), None)], "b": 3}, conv=conv()),
    "input handed through": lambda: Model(lambda m, x: (x, m.conv(x)), conv=conv()),
    "parameter returned": lambda: Model(lambda m, x: (m.conv(x), m.conv.weight), conv=conv()),
    "scalar loss": lambda: Model(lambda m, x: m.conv(x).pow(2).sum() / x.shape[0], conv=conv()),
    "one layer": lambda: nn.Conv2d(4, 2, 3),
    "group and layer norm": lambda: nn.Sequential(conv(), nn.GroupNorm(2, 4), nn.PReLU(), nn.LayerNorm([4, 6, 6])),
    "attention": lambda: Model(
        lambda m, x: m.attention(*[x.flatten(2).transpose(1, 2)] * 3, need_weights=False)[0].mean(1),
        attention=nn.MultiheadAttention(4, 2, batch_first=True),
    ),
    "lstm": lambda: Model(lambda m, x: m.lstm(x.flatten(2))[0][:, -1], lstm=nn.LSTM(36, 3, batch_first=True)),
    "forward called directly": lambda: Model(lambda m, x: m.conv.forward(x), conv=conv()),
    "lambda around a layer": lambda: Model(lambda m, x: m.act(m.conv(x)), conv=conv(), act=lambda x: x.relu_() + 1),
    "module list": lambda: Model(
        lambda m, x: sum(layer(x) for layer in m.layers), layers=nn.ModuleList([conv(), conv(), nn.Identity()])
    ),
    "parameter list": lambda: Model(
        lambda m, x: x * m.scales[0] + m.scales[1], scales=nn.ParameterList([torch.ones(1), torch.zeros(4, 1, 1)])
    ),
    "einsum and comparisons": lambda: Model(
        lambda m, x: torch.where(x > 0, torch.einsum("bchw,oc->bohw", x, m.fc.weight), -x), fc=nn.Linear(4, 4)
    ),
    "an attribute replaced": lambda: Model(remembers, conv=conv(), conv2=conv(), last=torch.zeros(())),
    "weight norm": lambda: nn.Sequential(parametrizations.weight_norm(conv()), nn.ReLU(inplace=True), conv()),
    "spectral norm": lambda: nn.Sequential(conv(), parametrizations.spectral_norm(conv())),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_captured_model_is_the_same_model(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()
    graph = capture(model, (images(4),))
    assert (graph.captured_by, graph.batch_size) == ("fx", 4)
    assert_same_model(model, graph, images(4))
    model.zero_grad(set_to_none=True)
    assert_same_model(model, graph, images(3))


def test_nothing_of_the_users_is_touched() -> None:
    model = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 2))
    model[1].eval()
    model[4].weight.requires_grad_(False)
    before, flags = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    kinds, torch_state, python_state = [type(m) for m in model.modules()], torch.get_rng_state(), random.getstate()
    x = images()
    kept = x.clone()
    graph = capture(model, (x,))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert flags == [m.training for m in model.modules()] and kinds == [type(m) for m in model.modules()]
    assert torch.equal(torch_state, torch.get_rng_state()) and python_state == random.getstate()
    assert torch.equal(x, kept) and not model[4].weight.requires_grad
    assert all(graph.parameters[n] is p for n, p in model.named_parameters())
    assert {id(p) for p in graph.program.parameters()} == {id(p) for p in model.parameters()}
    assert model[4].weight.grad is None


def test_other_threads_may_run_modules_meanwhile() -> None:
    layer, x = nn.Sequential(conv(), nn.ReLU()), images()
    failures: list[BaseException] = []
    stop = threading.Event()

    def busy() -> None:
        try:
            while not stop.is_set():
                assert isinstance(layer(x), Tensor)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=busy)
    thread.start()
    for _ in range(3):
        capture(nn.Sequential(*[conv() for _ in range(5)]), (x,))
    stop.set()
    thread.join()
    assert not failures


def test_nodes_say_what_they_are_and_where_they_are_written() -> None:
    model = Model(lambda m, x: F.relu(m.bn(m.conv(x))).flatten(1), conv=conv(), bn=nn.BatchNorm2d(4))
    graph = capture(model, (images(),))
    assert [n.kind for n in graph.nodes] == ["input", "conv2d", "batch_norm", "relu", "flatten", "output"]
    convolution, norm = graph.nodes[1:3]
    assert (convolution.path, convolution.parameters) == ("conv", ("conv.weight", "conv.bias"))
    assert norm.buffers == ("bn.running_mean", "bn.running_var", "bn.num_batches_tracked")
    assert convolution.outputs[0].shape == (4, 4, 6, 6) and convolution.output_bytes == 4 * 4 * 36 * 4
    assert graph.nodes[3].inputs == ("bn",) and graph.nodes[-1].inputs == ("flatten",)
    file, line = convolution.line.rsplit(":", 1)
    assert file == __file__ and "m.conv(x)" in linecache.getline(file, int(line))
    assert graph.parameter_elements == {"conv.weight": 144, "conv.bias": 4, "bn.weight": 4, "bn.bias": 4}


def test_a_batch_as_keywords_and_hugging_face() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=3
    )
    model = transformers.ResNetForImageClassification(config)
    labels = torch.tensor([0, 1])
    graph = capture(model, (), {"pixel_values": torch.randn(2, 3, 16, 16), "labels": labels})
    batch = {"pixel_values": torch.randn(5, 3, 16, 16), "labels": torch.tensor([0, 1, 2, 1, 0])}
    reference = copy.deepcopy(model).train()
    expected, got = reference(**batch), run(graph, **batch)
    assert type(got) is type(expected) and torch.equal(got.logits, expected.logits)
    assert torch.equal(got.loss, expected.loss) and got["logits"] is got.logits and got.hidden_states is None
    assert graph.notes == ()
    with pytest.raises(DataError, match="built otherwise"):
        graph.bind((), {"pixel_values": batch["pixel_values"]})
    with pytest.raises(ModelError, match="fails on a batch of these shapes: AttributeError"):
        capture(model, (), {"pixels": torch.randn(2, 3, 16, 16)})
    with pytest.raises(ModelError, match=r"Linear\.forward cannot be called with this batch: missing"):
        capture(nn.Linear(2, 2), (), {"pixels": torch.randn(2, 2)})


def test_nested_inputs_and_flags() -> None:
    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv()

        def forward(self, pair: tuple[Tensor, dict[str, Tensor]], *rest: Tensor, double: bool = False) -> Tensor:
            total = self.conv(pair[0]) + pair[1]["other"] + sum(rest)
            return total * 2 if double else total

    x = images()
    graph = capture(Pairs(), ((x, {"other": x}), x, x), {"double": True})
    assert [n.name for n in graph.nodes if n.kind == "input"] == ["pair_0", "pair_1_other", "input_1", "input_2"]
    model = Pairs()
    assert torch.equal(
        run(capture(model, ((x, {"other": x}), x), {"double": True}), (x, {"other": x}), x, double=True),
        model((x, {"other": x}), x, double=True),
    )


def test_a_condition_on_the_batch_size_is_noted_with_its_line() -> None:
    model = Model(lambda m, x: m.conv(x) if x.shape[0] > 1 else x, conv=conv())
    (note,) = capture(model, (images(4),)).notes
    assert note.startswith("a condition at ") and "test_capture.py:" in note and note.endswith("for a batch of 4")


def test_a_batch_size_written_into_the_model_is_noted() -> None:
    model = Model(lambda m, x: m.conv(x).view(4, -1), conv=conv())
    graph = capture(model, (images(4),))
    assert any("for batches of 4 samples only" in note for note in graph.notes)


# --- what cannot be recorded ---------------------------------------------------------------------------------


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop = conv(), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return self.conv(x)
        return self.conv(x) * 2


class PerSample(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.conv(x[i : i + 1])[0] for i in range(x.shape[0])])


class Sign(torch.autograd.Function):
    """Straight-through: recorded as its forward, the gradient would be lost."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.sign(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 0.5


class Binary(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Sign.apply(x)  # type: ignore[no-any-return]


class Running(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 2, 3))
        return x - self.mean.view(1, -1, 1, 1)


class Measured(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / float(x.detach().abs().max())


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (Branching, "the value of a tensor is needed"),
        (Measured, "the value of a tensor is needed"),
        (PerSample, "written out for the 4 samples"),
        (Binary, "a torch.autograd.Function is applied"),
        (Running, "the buffer 'mean' is replaced"),
    ],
)
def test_a_part_that_cannot_be_recorded_stays_whole(part: type[nn.Module], reason: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(conv(), part(), conv())
    graph = capture(model, (images(4),))
    assert graph.captured_by == "fx with coarse leaves"
    assert [n.path for n in graph.nodes if n.kind not in ("input", "output")] == ["0", "1", "2"]
    assert graph.notes[0].startswith("1 stays whole: ") and reason in graph.notes[0]
    for n in (4, 3):
        model.zero_grad(set_to_none=True)
        assert_same_model(model, graph, images(n))


def test_random_layers_inside_a_part_that_stays_whole_are_keyed() -> None:
    class Both(Branching):
        def forward(self, x: Tensor) -> Tensor:
            return self.drop(F.dropout(super().forward(x), 0.5, self.training))

    graph = capture(nn.Sequential(Both(), conv()), (images(),))
    state = torch.get_rng_state()
    assert torch.equal(run(graph, images()), run(graph, images()))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("part", [Branching, Binary, Measured])
def test_a_root_that_cannot_be_recorded_is_refused_with_its_line(part: type[nn.Module]) -> None:
    with pytest.raises(ModelError) as caught:
        capture(part(), (images(),))
    message = caught.value.message
    assert f"{part.__name__} cannot be captured" in message and "test_capture.py:" in message
    shown = {Branching: "`if x.sum() > 0:`", Binary: "`return torch.sign(x)", Measured: "float(x.detach()"}
    assert shown[part] in message and "submodule of its own" in (caught.value.hint or "")


def test_export_helps_where_the_root_replaces_a_buffer() -> None:
    class Root(Running):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.head = conv(), nn.BatchNorm2d(4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            y = super().forward(self.norm(self.conv(x)))
            return {"logits": self.head(F.relu(y).mean((2, 3)))}

    torch.manual_seed(0)
    model = Root()
    model.norm.eval()
    graph = capture(model, (images(4),))
    assert graph.captured_by == "export" and not model.norm.training and model.training
    model.train()
    assert [n.kind for n in graph.layers] == ["conv2d", "linear"]
    assert graph.parameters.keys() == dict(model.named_parameters()).keys()
    for n in (4, 3):
        model.zero_grad(set_to_none=True)
        assert_same_model(model, graph, images(n))
