"""MobileNet-V2 for ImageNet: 17 inverted residual blocks, 3,504,872 parameters with 1,000 classes.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, table 2. Layer names are those of
the common checkpoints. Shapes: (N, C, S, S) → (N, classes), S ≥ 32 (224 as published).
"""

from __future__ import annotations

import torch
from torch import nn

from convoy.models.common import initialise, require_dropout, require_size

# expansion, channels, repeats, stride of the first (table 2)
_ROWS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(inplace=True),
    )


class InvertedResidual(nn.Module):
    """Widen by ``expansion``, filter each channel by itself, narrow again; a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.has_shortcut = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            *([_convolution(inputs, hidden, 1)] if expansion != 1 else []),
            _convolution(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv(x)
        return x + y if self.has_shortcut else y


class MobileNetV2(nn.Module):
    def __init__(self, classes: int, channels: int, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = [_convolution(channels, 32, 3, stride=2)]
        inputs = 32
        for expansion, outputs, repeats, stride in _ROWS:
            for index in range(repeats):
                layers.append(InvertedResidual(inputs, outputs, stride if index == 0 else 1, expansion))
                inputs = outputs
        layers.append(_convolution(inputs, 1280, 1))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(1280, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.avgpool(self.features(x))
        logits: torch.Tensor = self.classifier(torch.flatten(x, 1))
        return logits


def mobilenet_v2(*, classes: int, channels: int, image_size: int, dropout: float = 0.2) -> nn.Module:
    require_size("mobilenet-v2", image_size, minimum=32)
    require_dropout("mobilenet-v2", dropout)
    model = MobileNetV2(classes, channels, dropout)
    initialise(model, mode="fan_out")
    return model
