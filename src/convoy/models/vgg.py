"""VGG-16 with BatchNorm, for CIFAR and for ImageNet: 13 convolutions of 3x3, five pools, three linear layers.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015, configuration
D. The CIFAR form ends in linear layers of 512-512-classes and has no bias before BatchNorm: 15,249,354 parameters,
58.17 MiB where the publication on stale weights reports 58.16. The ImageNet form has the layer names and the biases of
the common checkpoints: 138,365,992 parameters with 1,000 classes.
"""

from __future__ import annotations

import torch
from torch import nn

from convoy.models.common import initialise, require_dropout, require_size

_CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(nn.Module):
    """(N, C, S, S) → features (N, 512, S/32, S/32), averaged to ``pooled`` x ``pooled`` → (N, classes)."""

    def __init__(
        self, classes: int, channels: int, *, bias: bool, pool: nn.Module, pooled: int, hidden: int, dropout: float
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = channels
        for group in _CHANNELS:
            for outputs in group:
                layers += [
                    nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias),
                    nn.BatchNorm2d(outputs),
                    nn.ReLU(inplace=True),
                ]
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = pool
        self.classifier = nn.Sequential(
            nn.Linear(512 * pooled * pooled, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, classes),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.avgpool(self.features(x))
        logits: torch.Tensor = self.classifier(torch.flatten(x, 1))
        return logits


def vgg16(*, classes: int, channels: int, image_size: int, dropout: float = 0.5) -> nn.Module:
    require_size("vgg16", image_size, minimum=32)
    require_dropout("vgg16", dropout)
    # At 32 pixels the features are 1x1 already.
    pool = nn.Identity() if image_size < 64 else nn.AdaptiveAvgPool2d(1)
    model = VGG(classes, channels, bias=False, pool=pool, pooled=1, hidden=512, dropout=dropout)
    initialise(model, mode="fan_out", linear_std=0.01)
    return model


def vgg16_imagenet(*, classes: int, channels: int, image_size: int, dropout: float = 0.5) -> nn.Module:
    require_size("vgg16-imagenet", image_size, minimum=32)
    require_dropout("vgg16-imagenet", dropout)
    pool = nn.AdaptiveAvgPool2d(7)
    model = VGG(classes, channels, bias=True, pool=pool, pooled=7, hidden=4096, dropout=dropout)
    initialise(model, mode="fan_out", linear_std=0.01)
    return model
