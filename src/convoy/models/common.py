"""What the networks share: checks of sizes, and the initial weights."""

from __future__ import annotations

import math

from torch import nn

from convoy.errors import ModelError


def require_size(name: str, image_size: int, *, exact: tuple[int, ...] = (), minimum: int = 1) -> None:
    """Raise ModelError unless ``image_size`` (pixels, of square images) is one of ``exact`` or at least ``minimum``."""
    if exact and image_size not in exact:
        sizes = " or ".join(f"{size}x{size}" for size in exact)
        near = min(exact, key=lambda size: abs(size - image_size))
        raise ModelError(
            f"{name} takes images of {sizes} pixels, not {image_size}x{image_size}",
            hint=f"resize the images to {near}x{near}, or choose a ResNet, which takes any size",
        )
    if image_size < minimum:
        raise ModelError(
            f"{name} needs images of at least {minimum}x{minimum} pixels, not {image_size}x{image_size}",
            hint=f"resize the images to {minimum}x{minimum} or more",
        )


def require_dropout(name: str, dropout: float) -> None:
    """Raise ModelError unless ``dropout`` is a probability below 1."""
    if not isinstance(dropout, int | float) or not 0.0 <= dropout < 1.0:
        raise ModelError(f"dropout of {name} is {dropout!r}", hint="give a probability from 0 to below 1")


def initialise(model: nn.Module, *, mode: str, linear_std: float | None = None) -> None:
    """He's normal initialisation of every convolution and linear layer; biases 0; BatchNorm 1 and 0.

    ``mode`` is "fan_in" (keeps the variance of activations) or "fan_out" (of gradients) for convolutions, counted
    within a group of channels; linear layers use fan_in, and the last one the smaller variance of torch's own default.
    ``linear_std`` replaces that for linear layers: AlexNet's publication gives 0.01, and VGG-16 needs it too (with He's
    variance under dropout neither learned in the first 40 steps on CIFAR-10).
    Source: He et al., "Delving Deep into Rectifiers", ICCV 2015, eqs. 10 and 14.
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    for layer in linear:
        he = math.sqrt((1 / 3 if layer is linear[-1] else 2.0) / layer.in_features)
        nn.init.normal_(layer.weight, std=he if linear_std is None else linear_std)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            channels = module.in_channels if mode == "fan_in" else module.out_channels
            fan = channels // module.groups * math.prod(module.kernel_size)
            nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan))
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
