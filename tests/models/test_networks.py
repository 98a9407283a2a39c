"""Each network is what its name says: parameters, layers, shapes, gradients, and the same weights for the same seed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from convoy.models import build, names

IMAGENET = ("resnet18", "resnet34", "resnet50", "resnet101", "vgg16-imagenet", "densenet121", "mobilenet-v2")
LARGE = ("vgg16-imagenet", "resnet101", "resnet224", "resnet362")

# Counted by hand from the layer tables (ImageNet ones: 1,000 classes), and the numbered layers.
PARAMETERS_AND_LAYERS = {
    "lenet5": (61_706, 5),
    "plain6": (288_298, 7),
    "alexnet": (23_294_922, 8),
    "vgg16": (15_249_354, 16),
    "resnet20": (269_722, 20),
    "resnet32": (464_154, 32),
    "resnet44": (658_586, 44),
    "resnet56": (853_018, 56),
    "resnet110": (1_727_962, 110),
    "resnet224": (3_575_066, 224),
    "resnet362": (5_811_034, 362),
    "resnet18": (11_689_512, 18),
    "resnet34": (21_797_672, 34),
    "resnet50": (25_557_032, 50),
    "resnet101": (44_549_160, 101),
    "vgg16-imagenet": (138_365_992, 16),
    "densenet121": (7_978_856, 121),
    "mobilenet-v2": (3_504_872, 53),
}


def sizes(name: str) -> tuple[int, int, int]:
    """Classes, channels and image size to build with."""
    if name == "lenet5":
        return 10, 1, 28
    return (1000, 3, 224) if name in IMAGENET else (10, 3, 32)


def on_meta(name: str) -> nn.Module:
    """The network without memory for its weights: enough to count and to follow shapes."""
    classes, channels, image_size = sizes(name)
    with torch.device("meta"):
        return build(name, classes=classes, channels=channels, image_size=image_size)


def numbered_layers(model: nn.Module) -> list[str]:
    layers = [path for path, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return [path for path in layers if "downsample" not in path]


def test_the_table_above_has_every_network() -> None:
    assert tuple(sorted(PARAMETERS_AND_LAYERS)) == tuple(sorted(names()))


@pytest.mark.parametrize("name", names())
def test_parameters_and_layers(name: str) -> None:
    model = on_meta(name)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert (parameters, len(numbered_layers(model))) == PARAMETERS_AND_LAYERS[name]


@pytest.mark.parametrize("name", names())
def test_output_shape_at_the_published_size(name: str) -> None:
    classes, channels, image_size = sizes(name)
    output = on_meta(name)(torch.empty(3, channels, image_size, image_size, device="meta"))
    assert output.shape == (3, classes)


@pytest.mark.parametrize("name", [name for name in names() if name not in LARGE])
def test_a_step_reaches_every_parameter_and_eval_is_deterministic(name: str) -> None:
    channels, image_size = sizes(name)[1], 28 if name == "lenet5" else 64 if name in IMAGENET else 32
    model = build(name, classes=7, channels=channels, image_size=image_size, seed=1)
    x = torch.randn(2, channels, image_size, image_size, generator=torch.Generator().manual_seed(2))
    unchanged = x.clone()
    nn.functional.cross_entropy(model(x), torch.tensor([0, 6])).backward()
    without = [path for path, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert torch.equal(x, unchanged), "an in-place layer wrote into the input"
    model.eval()
    buffers = [buffer.clone() for buffer in model.buffers()]
    with torch.no_grad():
        assert torch.equal(model(x), model(x))
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))


@pytest.mark.parametrize("name", [name for name in names() if name not in LARGE])
def test_fx_traces_it_and_modules_run_in_the_order_of_their_definition(name: str) -> None:
    """The numbers of layers follow the order of computing; both orders must agree for PPVs to be readable."""
    model = on_meta(name)
    graph = torch.fx.symbolic_trace(model).graph
    computed = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    layers = numbered_layers(model)
    assert [path for path in computed if path in set(layers)] == layers
    assert len(computed) == len(set(computed)), "a module is used twice"


def test_traced_network_computes_the_same() -> None:
    model = build("resnet20", seed=0).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))


@pytest.mark.parametrize("name", ["lenet5", "vgg16", "resnet20", "mobilenet-v2"])
def test_the_seed_decides_the_weights_and_the_global_generator_stays(name: str) -> None:
    image_size = sizes(name)[2]
    before = torch.get_rng_state()
    first, again, other = (build(name, image_size=image_size, seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_without_a_seed_the_global_generator_decides() -> None:
    def weights() -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in build("resnet20").parameters()])

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        first, second = weights(), weights()
        torch.manual_seed(5)
        assert torch.equal(weights(), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("name", "path", "std"),
    [
        ("resnet20", "layer1.0.conv1", (2 / (16 * 9)) ** 0.5),  # He, by outputs
        ("lenet5", "fc1", (2 / 400) ** 0.5),
        ("mobilenet-v2", "features.17.conv.1.0", (2 / 9) ** 0.5),  # depthwise: one channel a group
        ("resnet18", "fc", (1 / (3 * 512)) ** 0.5),  # the last layer
        ("vgg16", "classifier.0", 0.01),
    ],
)
def test_initial_weights_have_the_variance_of_he(name: str, path: str, std: float) -> None:
    layer = build(name, image_size=32, seed=0).get_submodule(path)
    assert isinstance(layer.weight, torch.Tensor)
    assert layer.weight.std().item() == pytest.approx(std, rel=0.05)
    assert layer.bias is None or not layer.bias.any()


@pytest.mark.parametrize("name", ["alexnet", "vgg16", "lenet5", "resnet20"])
def test_a_fresh_network_does_not_prefer_a_class_strongly(name: str) -> None:
    """With logits far from 0 at the start AlexNet and VGG-16 did not learn in their first 40 steps."""
    x = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(2)  # dropout
        loss = nn.functional.cross_entropy(build(name, seed=0)(x), torch.arange(32) % 10).item()
    assert loss < 3.2  # ln 10 = 2.3


@pytest.mark.parametrize("name", ["resnet20", "resnet50"])
def test_projections_are_named_downsample(name: str) -> None:
    options = {"shortcut": "B"} if name == "resnet20" else {}
    with torch.device("meta"):
        model = build(name, **options)
    groups = (2, 3) if name == "resnet20" else (1, 2, 3, 4)
    projections = [p for p, m in model.named_modules() if isinstance(m, nn.Conv2d) and "downsample" in p]
    assert projections == [f"layer{group}.0.downsample.0" for group in groups]
    assert len(numbered_layers(model)) == int(name.removeprefix("resnet"))


def test_shortcut_a_keeps_every_second_pixel_and_pads_with_zeros() -> None:
    shortcut = build("resnet20").get_submodule("layer2.0.downsample")
    assert list(shortcut.parameters()) == []
    x = torch.randn(2, 16, 9, 9).to(memory_format=torch.channels_last)
    y = shortcut(x)
    assert y.shape == (2, 32, 5, 5)
    assert torch.equal(y[:, :16], x[:, :, ::2, ::2])
    assert not y[:, 16:].any()
    assert shortcut(x[:, :, :8, :8].clone()).is_contiguous(memory_format=torch.channels_last)


def test_densenet_layer_sees_all_before_it() -> None:
    """Pairwise concatenation must keep the order input, layer 1, layer 2, ..."""
    block = build("densenet121", seed=0).eval().get_submodule("features.denseblock1")
    x = torch.randn(1, 64, 4, 4)
    with torch.no_grad():
        seen = [x]
        for layer in block.children():
            seen.append(layer(torch.cat(seen, 1)))
        assert torch.equal(block(x), torch.cat(seen, 1))


@pytest.mark.parametrize("image_size", [32, 64, 96])
@pytest.mark.parametrize("name", ["vgg16", "resnet20", "resnet18"])
def test_networks_with_average_pooling_take_other_sizes(name: str, image_size: int) -> None:
    with torch.device("meta"):
        model = build(name, classes=4, channels=1, image_size=image_size)
    assert model(torch.empty(2, 1, image_size, image_size, device="meta")).shape == (2, 4)
