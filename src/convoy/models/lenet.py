"""LeNet-5 with ReLU and max-pooling: 5 layers, 61,706 parameters for grey images and 10 classes.

LeCun et al., "Gradient-based learning applied to document recognition", Proc. IEEE 1998, with full connections
between the two convolutions and a linear output layer. Shapes: (N, C, S, S) → (N, classes), S = 28 or 32; images of
28 pixels are padded by 2 in the first convolution, as the original pads the digits to 32.
"""

from __future__ import annotations

import torch
from torch import nn

from convoy.models.common import initialise, require_size


class LeNet5(nn.Module):
    def __init__(self, classes: int, channels: int, padding: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 6, 5, padding=padding)
        self.relu1 = nn.ReLU(inplace=True)
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.relu2 = nn.ReLU(inplace=True)
        self.pool2 = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.relu3 = nn.ReLU(inplace=True)
        self.fc2 = nn.Linear(120, 84)
        self.relu4 = nn.ReLU(inplace=True)
        self.fc3 = nn.Linear(84, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool1(self.relu1(self.conv1(x)))
        x = self.pool2(self.relu2(self.conv2(x)))
        x = torch.flatten(x, 1)
        x = self.relu3(self.fc1(x))
        x = self.relu4(self.fc2(x))
        logits: torch.Tensor = self.fc3(x)
        return logits


def lenet5(*, classes: int, channels: int, image_size: int) -> nn.Module:
    require_size("lenet5", image_size, exact=(28, 32))
    model = LeNet5(classes, channels, padding=(32 - image_size) // 2)
    initialise(model, mode="fan_in")
    return model
