"""All rules by kind."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from convoy.graph.rules.activations import GELU, LeakyReLU, ReLU, ReLU6, Sigmoid, SiLU, Tanh
from convoy.graph.rules.batch_norm import BatchNorm
from convoy.graph.rules.convolution import Conv2d
from convoy.graph.rules.cropping import Pad, Slice
from convoy.graph.rules.linear import Linear
from convoy.graph.rules.pooling import AdaptiveAvgPool, AvgPool, MaxPool
from convoy.graph.rules.rule import Rule
from convoy.graph.rules.shaping import Add, Cat, Dropout, Flatten, Identity

_ALL: tuple[Rule[Any], ...] = (
    Conv2d(),
    Linear(),
    BatchNorm(),
    ReLU(),
    ReLU6(),
    LeakyReLU(),
    GELU(),
    SiLU(),
    Tanh(),
    Sigmoid(),
    MaxPool(),
    AvgPool(),
    AdaptiveAvgPool(),
    Add(),
    Cat(),
    Dropout(),
    Flatten(),
    Identity(),
    Slice(),
    Pad(),
)

RULES: Mapping[str, Rule[Any]] = MappingProxyType({rule.kind: rule for rule in _ALL})


def rule_for(kind: str) -> Rule[Any] | None:
    """The rule of a kind; None where there is none and a node of that kind has to run whole under autograd.

    That a kind has a rule does not say that every layer of the kind fits it: ``bind`` does.
    """
    return RULES.get(kind)
