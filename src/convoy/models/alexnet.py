"""AlexNet for CIFAR: five convolutions with BatchNorm and three linear layers, 23,294,922 parameters.

Krizhevsky, "One weird trick for parallelizing convolutional neural networks", arXiv 1404.5997 (64-192-384-256-256
channels), brought to 32 pixels. The publication on stale weights does not print its variant; of the ones tried, this
comes nearest to both of its figures: weights 88.86 MiB (88.87 published) and, counting input, convolution, BatchNorm,
ReLU and pooling outputs, 0.88 MiB of activations per image (0.88). That fixes the first convolution (11x11, stride 1,
padding 1), the second without padding, and so the sizes 24 → pool 11 → 9 → pool 4 → 4 → 4 → 4 → pool 2.
Shapes: (N, C, 32, 32) → (N, classes).
"""

from __future__ import annotations

import torch
from torch import nn

from convoy.models.common import initialise, require_dropout, require_size


def _convolution(inputs: int, outputs: int, kernel: int, padding: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, padding=padding, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


class AlexNet(nn.Module):
    def __init__(self, classes: int, channels: int, dropout: float) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_convolution(channels, 64, 11),
            nn.MaxPool2d(3, stride=2),
            *_convolution(64, 192, 3, padding=0),
            nn.MaxPool2d(3, stride=2),
            *_convolution(192, 384, 3),
            *_convolution(384, 256, 3),
            *_convolution(256, 256, 3),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(256 * 2 * 2, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, classes),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(torch.flatten(self.features(x), 1))
        return logits


def alexnet(*, classes: int, channels: int, image_size: int, dropout: float = 0.5) -> nn.Module:
    require_size("alexnet", image_size, exact=(32,))
    require_dropout("alexnet", dropout)
    model = AlexNet(classes, channels, dropout)
    initialise(model, mode="fan_in", linear_std=0.01)
    return model
