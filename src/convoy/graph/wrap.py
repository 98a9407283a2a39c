"""Small callables that stand in a captured graph where the user's call needs something around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from convoy.graph.structure import Structure


class MethodCall:
    """``MethodCall("relu")(x)`` is ``x.relu()``."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(target, self.name)(*args, **kwargs)


class NoGrad(nn.Module):
    """Runs ``inner`` without recording gradients, as the user's code did."""

    def __init__(self, inner: Callable[..., Any]) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return self.inner(*args, **kwargs)


class Rebuild(nn.Module):
    """Puts the values of the last stage together to what the user's model returns."""

    def __init__(self, structure: Structure) -> None:
        super().__init__()
        self.structure = structure

    def forward(self, *leaves: Any) -> Any:
        return self.structure.rebuild(leaves)
