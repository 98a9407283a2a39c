"""ResNet-18, -34, -50 and -101 for ImageNet.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, table 1, with the stride of a bottleneck in its
3x3 convolution. Layer names are those of the common checkpoints; ``downsample.0`` is the projection of a shortcut.
Shapes: (N, C, S, S) → (N, classes), S ≥ 32 (224 as published).
"""

from __future__ import annotations

import torch
from torch import nn

from convoy.models.common import initialise, require_size
from convoy.models.resnet_cifar import BasicBlock

_DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, the last four times as wide, and the shortcut around them."""

    def __init__(self, inputs: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = downsample
        self.relu3 = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        out: torch.Tensor = self.relu3(y + shortcut)
        return out


class ResNet(nn.Module):
    def __init__(self, depth: int, classes: int, channels: int) -> None:
        super().__init__()
        counts = _DEPTHS[depth]
        bottleneck = depth >= 50
        expansion = 4 if bottleneck else 1
        self.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = self._group(bottleneck, 64, 64, counts[0], 1)
        self.layer2 = self._group(bottleneck, 64 * expansion, 128, counts[1], 2)
        self.layer3 = self._group(bottleneck, 128 * expansion, 256, counts[2], 2)
        self.layer4 = self._group(bottleneck, 256 * expansion, 512, counts[3], 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512 * expansion, classes)

    @staticmethod
    def _group(bottleneck: bool, inputs: int, width: int, count: int, stride: int) -> nn.Sequential:
        block = Bottleneck if bottleneck else BasicBlock
        outputs = 4 * width if bottleneck else width
        downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))
        first = block(inputs, width, stride, downsample)
        return nn.Sequential(first, *(block(outputs, width, 1, None) for _ in range(count - 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: torch.Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def resnet(*, depth: int, classes: int, channels: int, image_size: int) -> nn.Module:
    require_size(f"resnet{depth}", image_size, minimum=32)
    model = ResNet(depth, classes, channels)
    initialise(model, mode="fan_out")
    return model
