"""What the publication on pipelined training with stale weights reports about these networks, as data.

Zhang and Abdelrahman, "Pipelined Training with Stale Weights in Deep Convolutional Neural Networks", Applied
Computational Intelligence and Soft Computing 2021, article 3839543. Its megabytes are 2**20 bytes: the weights of
ResNet-20, LeNet-5 and VGG-16 come out to the digit that way and not with 10**6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

PUBLISHED_PPV: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "lenet5": (2,),
        "alexnet": (3,),
        "vgg16": (2,),
        "resnet20": (7,),
        "resnet56": (19,),
        "resnet110": (37,),
        "resnet224": (75,),
        "resnet362": (121,),
    }
)
"""Pipeline placement vectors: registers after these layers. A ResNet's is the end of its 16-channel group."""


@dataclass(frozen=True, slots=True)
class PublishedMemory:
    """Float32 sizes in MiB, and the memory added by a pipeline with K = 1 at batch 128, in percent of (activations at
    batch 128 + weights): as the publication reports its own scheme, and PipeDream's."""

    activations_mib: float  # at batch 1
    weights_mib: float
    pipedream_increase_percent: float
    increase_percent: float


PUBLISHED_MEMORY: Mapping[str, PublishedMemory] = MappingProxyType(
    {
        "lenet5": PublishedMemory(0.06, 0.24, 109, 97),
        "alexnet": PublishedMemory(0.88, 88.87, 214, 37),
        "vgg16": PublishedMemory(3.30, 58.16, 124, 75),
        "resnet20": PublishedMemory(3.84, 1.03, 61, 60),
    }
)
"""For the placement vector that ``PUBLISHED_PPV`` gives."""
