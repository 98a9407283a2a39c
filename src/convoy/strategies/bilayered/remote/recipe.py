"""What actors are made from. Travels once, by Ray's serialiser, from the driver only."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from convoy.data.loader import Loader
from convoy.data.user import UserLoader
from convoy.errors import DataError
from convoy.strategies.base import Loss, Settings
from convoy.strategies.batch import batch_size
from convoy.strategies.bilayered.node import Node
from convoy.strategies.bilayered.quality import HeldOut
from convoy.strategies.bilayered.samples import Samples, samples_of
from convoy.strategies.bilayered.step import reseeded
from convoy.strategies.pipelined.remote.numbers import Numbers

_LOOKED_AT = 64  # samples that the checksum reads


@dataclass(frozen=True)
class Recipe:
    """``data``: the loader; what it reads from files, each node opens itself. ``optimizer`` and its ``attributes`` as
    ``StageRecipe.attributes_of`` gives them. ``checksum``: of the data where the driver is."""

    model: nn.Module
    loss: Loss
    optimizer: type[Optimizer]
    attributes: Mapping[str, Any]
    data: Any
    settings: Settings
    inner: str
    form: str
    held_out: bool
    numbers: Numbers
    checksum: str

    def node(self, index: int) -> Node:
        """Replica ``index``. Raises DataError where the data here are other ones."""
        samples = self._samples()
        if checksum(self.data, samples) != self.checksum:
            raise DataError(
                f"the data of node {index} are not those of the driver", hint="put the same files on all machines"
            )
        optimizer: Optimizer = object.__new__(self.optimizer)
        vars(optimizer).update(self.attributes)
        settings = reseeded(self.settings, index) if index else self.settings
        return Node(
            index, self.model, self.loss, optimizer, samples, settings=settings, inner=self.inner, form=self.form
        )

    def quality(self) -> HeldOut:
        """For the server."""
        return HeldOut(self.model, self._samples(), self.settings)

    def _samples(self) -> Samples:
        self.numbers.apply()
        torch.set_num_threads(self.settings.threads or 1)
        return samples_of(self.data, seed=self.settings.seed, held_out=self.held_out)

    def with_checksum(self, samples: Samples) -> Recipe:
        return replace(self, checksum=checksum(self.data, samples))


def checksum(data: Any, samples: Samples) -> str:
    """Of the number of samples, all labels where they are at hand, and some samples. Of a Dataset of the user's, which
    may augment by chance, the targets and shapes only."""
    if isinstance(data, UserLoader):
        data = data.loader
    seen = hashlib.sha256(f"{samples.count} {samples.batch_size}".encode())
    places = np.unique(np.linspace(0, samples.count - 1, _LOOKED_AT).astype(np.int64))
    if isinstance(data, Loader):
        seen.update(np.ascontiguousarray(data.source.labels).tobytes())
        seen.update(np.ascontiguousarray(data.source.take(places)).tobytes())
        return seen.hexdigest()
    for x, y in samples.fetch([places], 1):
        seen.update(repr((batch_size(x), [list(t.shape[1:]) for t in _tensors(x)])).encode())
        for target in _tensors(y):
            seen.update(target.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return seen.hexdigest()


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = [value[name] for name in sorted(value, key=str)]
    return [t for item in value for t in _tensors(item)] if isinstance(value, list | tuple) else []
