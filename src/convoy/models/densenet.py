"""DenseNet-121 for ImageNet: growth 32, dense blocks of 6, 12, 24 and 16 layers, 7,978,856 parameters (1,000 classes).

Huang et al., "Densely Connected Convolutional Networks", CVPR 2017, table 1 (DenseNet-BC). Layer names are those of
the common checkpoints. Shapes: (N, C, S, S) → (N, classes), S ≥ 32 (224 as published).
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from convoy.models.common import initialise, require_size

_GROWTH = 32
_BLOCKS = (6, 12, 24, 16)


class DenseLayer(nn.Module):
    """(N, inputs, S, S) → (N, growth, S, S), through a 1x1 convolution of four times the growth."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(inputs, 4 * _GROWTH, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * _GROWTH)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4 * _GROWTH, _GROWTH, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(self.relu1(self.norm1(x)))
        out: torch.Tensor = self.conv2(self.relu2(self.norm2(x)))
        return out


class DenseBlock(nn.Module):
    """Every layer sees the block's input and the outputs of all layers before it."""

    def __init__(self, inputs: int, layers: int) -> None:
        super().__init__()
        for index in range(layers):
            self.add_module(f"denselayer{index + 1}", DenseLayer(inputs + index * _GROWTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.children():
            # Concatenating pairwise gives the same tensor as concatenating all: one input and one output at any cut.
            x = torch.cat((x, layer(x)), 1)
        return x


def _transition(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            norm=nn.BatchNorm2d(inputs),
            relu=nn.ReLU(inplace=True),
            conv=nn.Conv2d(inputs, outputs, 1, bias=False),
            pool=nn.AvgPool2d(2),
        )
    )


class DenseNet(nn.Module):
    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        width = 2 * _GROWTH
        parts: OrderedDict[str, nn.Module] = OrderedDict(
            conv0=nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False),
            norm0=nn.BatchNorm2d(width),
            relu0=nn.ReLU(inplace=True),
            pool0=nn.MaxPool2d(3, stride=2, padding=1),
        )
        for number, layers in enumerate(_BLOCKS, start=1):
            parts[f"denseblock{number}"] = DenseBlock(width, layers)
            width += layers * _GROWTH
            if number < len(_BLOCKS):
                parts[f"transition{number}"] = _transition(width, width // 2)
                width //= 2
        parts["norm5"] = nn.BatchNorm2d(width)
        self.features = nn.Sequential(parts)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.avgpool(self.relu(self.features(x)))
        logits: torch.Tensor = self.classifier(torch.flatten(x, 1))
        return logits


def densenet121(*, classes: int, channels: int, image_size: int) -> nn.Module:
    require_size("densenet121", image_size, minimum=32)
    model = DenseNet(classes, channels)
    initialise(model, mode="fan_in")
    return model
