"""Names of the networks, what each is, and how to build one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any

from convoy.errors import ModelError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Network:
    """Where a network is built (a function of this package and its fixed arguments) and one line about it."""

    module: str
    function: str
    line: str
    fixed: Mapping[str, Any] = field(default_factory=dict)


def _cifar_resnet(depth: int, parameters: str) -> Network:
    line = (
        f"ResNet-{depth} for CIFAR: {depth} layers, 16-32-64 channels, parameter-free shortcuts, {parameters} weights"
    )
    return Network("resnet_cifar", "resnet_cifar", line, {"depth": depth})


def _imagenet_resnet(depth: int, block: str, parameters: str) -> Network:
    line = f"ResNet-{depth} for ImageNet: {depth} layers, {block} blocks, projection shortcuts, {parameters} weights"
    return Network("resnet", "resnet", line, {"depth": depth})


_NETWORKS: Mapping[str, Network] = {
    "lenet5": Network("lenet", "lenet5", "LeNet-5: 2 convolutions, 3 linear layers, 28 or 32 pixels, 62 k weights"),
    "plain6": Network("plain", "plain6", "Plain CNN: 6 convolutions without BatchNorm, 1 linear layer, 0.29 M weights"),
    "alexnet": Network(
        "alexnet",
        "alexnet",
        "AlexNet for CIFAR: 5 convolutions with BatchNorm, 3 linear layers, 32 pixels, 23.3 M weights",
    ),
    "vgg16": Network(
        "vgg", "vgg16", "VGG-16 for CIFAR: 13 convolutions with BatchNorm, 3 linear layers, 15.2 M weights"
    ),
    "resnet20": _cifar_resnet(20, "0.27 M"),
    "resnet32": _cifar_resnet(32, "0.46 M"),
    "resnet44": _cifar_resnet(44, "0.66 M"),
    "resnet56": _cifar_resnet(56, "0.85 M"),
    "resnet110": _cifar_resnet(110, "1.7 M"),
    "resnet224": _cifar_resnet(224, "3.6 M"),
    "resnet362": _cifar_resnet(362, "5.8 M"),
    "resnet18": _imagenet_resnet(18, "basic", "11.7 M"),
    "resnet34": _imagenet_resnet(34, "basic", "21.8 M"),
    "resnet50": _imagenet_resnet(50, "bottleneck", "25.6 M"),
    "resnet101": _imagenet_resnet(101, "bottleneck", "44.5 M"),
    "vgg16-imagenet": Network(
        "vgg",
        "vgg16_imagenet",
        "VGG-16 for ImageNet: 13 convolutions with BatchNorm, 3 linear layers, 138 M weights",
    ),
    "densenet121": Network(
        "densenet", "densenet121", "DenseNet-121 for ImageNet: dense blocks of 6, 12, 24 and 16 layers, 8.0 M weights"
    ),
    "mobilenet-v2": Network(
        "mobilenet", "mobilenet_v2", "MobileNet-V2 for ImageNet: 17 inverted residual blocks, 3.5 M weights"
    ),
}


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "").replace(" ", "")


_BY_PLAIN_NAME = {_plain(name): name for name in _NETWORKS}


def names() -> tuple[str, ...]:
    """All networks that ``build`` knows."""
    return tuple(_NETWORKS)


def _lookup(name: str) -> Network:
    try:
        return _NETWORKS[_BY_PLAIN_NAME[_plain(name)]]
    except KeyError:
        near = [_BY_PLAIN_NAME[match] for match in get_close_matches(_plain(name), _BY_PLAIN_NAME, n=3, cutoff=0.6)]
        hint = f"did you mean {' or '.join(near)}" if near else f"the networks are {', '.join(names())}"
        raise ModelError(
            f"there is no network named {name!r}", hint=f"{hint}; a network of your own is named as module:callable"
        ) from None


def describe(name: str) -> str:
    """One line about a network. Raises ModelError for a name that is not known."""
    return _lookup(name).line


def build(
    name: str,
    *,
    classes: int = 10,
    channels: int = 3,
    image_size: int = 32,
    seed: int | None = None,
    **options: Any,
) -> nn.Module:
    """A fresh network that maps (batch, channels, image_size, image_size) to logits (batch, classes).

    Case, dashes and underscores in ``name`` do not matter. ``options`` are the network's own, such as ``dropout``.
    With ``seed`` the weights are a function of it and torch's global generator is left as it was; without, they are
    drawn from the global generator. Raises ModelError for unknown names and options and for sizes that do not fit.
    """
    network = _lookup(name)
    for what, value in (("classes", classes), ("channels", channels), ("image_size", image_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ModelError(f"{what} of {name} is {value!r}", hint="give a whole number of 1 or more")
    function: Callable[..., nn.Module] = getattr(import_module(f"convoy.models.{network.module}"), network.function)
    _check_options(name, function, network.fixed, options)
    with seeded(seed):
        return function(classes=classes, channels=channels, image_size=image_size, **network.fixed, **options)


def _check_options(
    name: str, function: Callable[..., object], fixed: Mapping[str, Any], options: Mapping[str, Any]
) -> None:
    known = [
        p for p in inspect.signature(function).parameters if p not in {"classes", "channels", "image_size", *fixed}
    ]
    for option in options:
        if option not in known:
            near = get_close_matches(option, known, n=1)
            offered = f"its options are {', '.join(known)}" if known else "it has no options"
            hint = f"did you mean {near[0]}?" if near else offered
            raise ModelError(f"network {name} has no option {option!r}", hint=hint)


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Within, torch draws from ``seed``; afterwards its global CPU generator is as before. None changes nothing."""
    if seed is None:
        yield
        return
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
