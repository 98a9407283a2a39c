"""Layers are numbered as in the publications."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convoy.graph.capture import capture
from convoy.graph.graph import Graph
from convoy.graph.split import crossing, cut_after_layer
from convoy.models import build


class Basic(nn.Module):
    """As in torchvision (``downsample``), or with the shortcut written first, or with what is done before it."""

    def __init__(self, inner: int, outer: int, stride: int, order: str) -> None:
        super().__init__()
        self.order = order
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.downsample: nn.Module | None = None
        if stride != 1 or inner != outer:
            self.downsample = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        if self.order == "shortcut first" and self.downsample is not None:
            identity = self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.order == "shortcut last" and self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return F.relu(out)


class CifarResNet(nn.Module):
    def __init__(self, depth: int, order: str = "shortcut last") -> None:
        super().__init__()
        n = (depth - 2) // 6
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4)
        blocks, width = [], 4
        for group, stride in ((4, 1), (8, 2), (16, 2)):
            for i in range(n):
                blocks.append(Basic(width, group, stride if i == 0 else 1, order))
                width = group
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn1(self.conv1(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def captured(model: nn.Module) -> Graph:
    return capture(model, (torch.randn(2, 3, 8, 8),))


@pytest.mark.parametrize("order", ["shortcut first", "shortcut last"])
@pytest.mark.parametrize("depth", [20, 56])
def test_a_cifar_resnet_has_as_many_layers_as_its_name_says(depth: int, order: str) -> None:
    graph = captured(CifarResNet(depth, order))
    assert [n.layer for n in graph.layers] == list(range(1, depth + 1))
    assert graph.layers[0].path == "conv1" and graph.layers[-1].path == "fc"
    assert [n.path for n in graph.nodes if n.is_projection] == [
        f"blocks.{(depth - 2) // 6 * group}.downsample.0" for group in (1, 2)
    ]


@pytest.mark.parametrize("order", ["shortcut first", "shortcut last"])
@pytest.mark.parametrize(("depth", "last"), [(20, 7), (56, 19)])
def test_the_published_placements_end_the_16_channel_group(depth: int, last: int, order: str) -> None:
    graph = captured(CifarResNet(depth, order))
    position = cut_after_layer(graph, last)
    first_block = f"blocks.{(depth - 2) // 6}"
    assert all(n.scope.startswith(first_block) or n.scope == "" for n in graph.nodes[position : position + 8])
    starts = {"shortcut first": f"{first_block}.downsample.0", "shortcut last": f"{first_block}.conv1"}
    assert graph.nodes[position].path == starts[order]
    assert graph.nodes[position - 1].kind == "relu"


def test_a_shortcut_without_weights_goes_with_its_block() -> None:
    graph = captured(build("resnet20"))
    position = cut_after_layer(graph, 7)
    assert graph.nodes[position - 1].path == "layer1.2.relu2"
    # Padded behind the cut, the shortcut needs nothing across it but what the convolution needs too.
    assert crossing(graph, position) == (graph.nodes[position - 1].name,)
    assert graph.nodes[cut_after_layer(graph, 8)].path == "layer2.0.conv2"


def test_the_cut_inside_a_block_leaves_its_own_projection_alone() -> None:
    graph = captured(CifarResNet(20, "shortcut last"))
    # Layer 8 and 9 are the two convolutions of the first block with a projection, which runs after both.
    assert graph.nodes[cut_after_layer(graph, 8)].path == "blocks.3.conv2"
    assert graph.nodes[cut_after_layer(graph, 9)].path == "blocks.4.conv1"


class Bottleneck(nn.Module):
    """With squeeze-and-excitation on the main branch, pooling on the shortcut (ResNet-D) and drop path."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.main = nn.Sequential(nn.Conv2d(width, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 3, 2, 1), nn.Conv2d(2, 8, 1))
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1), nn.Sigmoid())
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(width, 8, 1), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Tensor:
        main = self.main(x)
        main = main * self.gate(main)
        return torch.add(self.shortcut(x), main)


def test_branches_with_gates_and_pooling() -> None:
    graph = captured(nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), Bottleneck(4), Bottleneck(8)))
    assert len(graph.layers) == 1 + 2 * 5
    assert [n.path for n in graph.nodes if n.is_projection] == ["1.shortcut.1", "2.shortcut.1"]


class Preactivated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn, self.conv1, self.conv2 = nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, 1, 1), nn.Conv2d(6, 6, 3, 1, 1)
        self.shortcut = nn.Conv2d(4, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn(x))
        return self.conv2(F.relu(self.conv1(out))) + self.shortcut(out)


def test_preactivation_stays_with_the_layer_before() -> None:
    graph = captured(nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), Preactivated()))
    assert [n.path for n in graph.layers] == ["0", "1.conv1", "1.conv2"]
    assert graph.nodes[cut_after_layer(graph, 1)].path == "1.conv1"


class Parallel(nn.Module):
    """Sums that are no shortcuts: two inputs, two equal branches, a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(3, 3, 1) for _ in range(4))

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.a(x) + 1, self.b(self.a(x) + self.b(x)) + self.c(self.d(y))


def test_sums_that_are_no_shortcuts_are_not_taken_for_some() -> None:
    graph = capture(Parallel(), (torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)))
    assert not any(n.is_projection for n in graph.nodes)
    assert len(graph.layers) == 6


def test_functional_layers_count() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel, self.weight = nn.Parameter(torch.randn(4, 3, 3, 3)), nn.Parameter(torch.randn(2, 4))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(F.conv2d(x, self.kernel).mean((2, 3)), self.weight)

    assert [n.kind for n in captured(Functional()).layers] == ["conv2d", "linear"]


def test_hugging_face_resnet() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[8, 8, 16, 16], depths=[2, 1, 1, 1], layer_type="bottleneck", num_labels=3
    )
    graph = capture(transformers.ResNetForImageClassification(config), (), {"pixel_values": torch.randn(2, 3, 32, 32)})
    assert len(graph.layers) == 1 + 3 * 5 + 1
    projections = [n.path for n in graph.nodes if n.is_projection]
    assert len(projections) == 4 and all(path.endswith("shortcut.convolution") for path in projections)
