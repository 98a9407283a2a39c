"""A bi-layered run on actors, without the Trainer around it: what both scripts drive."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from convoy.data import open_data
from convoy.models import build
from convoy.strategies.base import Settings
from convoy.strategies.bilayered import BiLayered
from convoy.strategies.bilayered.remote.step import RemoteStep


class Workload:
    """``spec`` and ``net`` as on the command line. Equal objects every time they are made."""

    def __init__(self, spec: str, net: str, batch_size: int, seed: int, limit: int | None = None) -> None:
        bundle = open_data(spec, batch_size=batch_size, seed=seed, limit=limit)
        self.data, self.validation = bundle.train, bundle.validation
        self._net, self._bundle, self.seed = net, bundle, seed
        self.settings = Settings(seed=seed, threads=1)
        self.loss = nn.CrossEntropyLoss()

    def parts(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        channels, size, _ = self._bundle.sample_shape
        model = build(
            self._net, channels=channels, image_size=size, classes=len(self._bundle.classes), seed=self.seed
        ).train()
        return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def bind(self, strategy: BiLayered, passes: int, sink: Any = None) -> tuple[RemoteStep, nn.Module]:
        model, optimizer = self.parts()
        step = strategy.bind_data(
            model, self.loss, optimizer, self.data, passes=passes, settings=self.settings, sink=sink
        )
        assert isinstance(step, RemoteStep)
        return step, model
