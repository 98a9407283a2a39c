"""ResNets for CIFAR: 6n + 2 layers in three groups of n basic blocks with 16, 32 and 64 channels.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2. Shortcut "A", the default, keeps
every second pixel and pads the new channels with zeros (no parameters: ResNet-20 has 269,722, 1.03 MiB, as the
publication on stale weights reports); "B" projects with a 1x1 convolution, found under ``downsample.0``. Layer 1 is
``conv1``, layers 2 … 2n + 1 the first group, layer 6n + 2 is ``fc``. Shapes: (N, C, S, S) → (N, classes), S ≥ 8.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from convoy.errors import ModelError
from convoy.models.common import initialise, require_size


class PadShortcut(nn.Module):
    """(N, C, S, S) → (N, C + new_channels, ceil(S/2), ceil(S/2)); the new channels are zero."""

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self.new_channels = new_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.new_channels))

    def extra_repr(self) -> str:
        return f"new_channels={self.new_channels}"


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the shortcut around them; ``downsample`` is there where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = downsample
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        out: torch.Tensor = self.relu2(y + shortcut)
        return out


class CifarResNet(nn.Module):
    def __init__(self, blocks: int, classes: int, channels: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = self._group(16, 16, blocks, 1, shortcut)
        self.layer2 = self._group(16, 32, blocks, 2, shortcut)
        self.layer3 = self._group(32, 64, blocks, 2, shortcut)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, classes)

    @staticmethod
    def _group(inputs: int, outputs: int, blocks: int, stride: int, shortcut: str) -> nn.Sequential:
        downsample: nn.Module | None = None
        if stride != 1 and shortcut == "A":
            downsample = PadShortcut(outputs - inputs)
        elif stride != 1:
            projection = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))
        first = BasicBlock(inputs, outputs, stride, downsample)
        return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1, None) for _ in range(blocks - 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: torch.Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def resnet_cifar(*, depth: int, classes: int, channels: int, image_size: int, shortcut: str = "A") -> nn.Module:
    """``depth`` = 6n + 2."""
    require_size(f"resnet{depth}", image_size, minimum=8)
    if shortcut not in ("A", "B"):
        raise ModelError(
            f"shortcut of resnet{depth} is {shortcut!r}", hint='give "A" (zero padding) or "B" (projection)'
        )
    model = CifarResNet((depth - 2) // 6, classes, channels, shortcut)
    initialise(model, mode="fan_out")
    return model
