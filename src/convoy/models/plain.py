"""A plain CNN without BatchNorm: six convolutions of 3x3 in three pairs, two pools, a mean over the pixels, one linear
layer. Samples of a batch do not depend on each other in it.

Shapes: (N, C, S, S) → (N, 128, S/4, S/4), averaged → (N, classes); S of 4 or more. 288,298 parameters for colour images
and 10 classes.
"""

from __future__ import annotations

from torch import nn

from convoy.models.common import initialise, require_size

_CHANNELS = ((32, 32), (64, 64), (128, 128))


def plain6(*, classes: int, channels: int, image_size: int) -> nn.Module:
    require_size("plain6", image_size, minimum=4)
    layers: dict[str, nn.Module] = {}
    inputs, number = channels, 0
    for group in _CHANNELS:
        if number:
            layers[f"pool{number // 2}"] = nn.MaxPool2d(2)
        for outputs in group:
            number += 1
            layers[f"conv{number}"] = nn.Conv2d(inputs, outputs, 3, padding=1)
            layers[f"relu{number}"] = nn.ReLU(inplace=True)
            inputs = outputs
    layers.update(mean=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(inputs, classes))
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    initialise(model, mode="fan_in")
    return model
