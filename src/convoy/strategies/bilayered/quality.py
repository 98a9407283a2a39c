"""Q: the accuracy of some weights on samples that nobody trains on."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from convoy.errors import DataError
from convoy.strategies.base import Settings
from convoy.strategies.batch import call, channels_last, to_device
from convoy.strategies.bilayered import tensors
from convoy.strategies.bilayered.layout import Flat
from convoy.strategies.bilayered.samples import Samples
from convoy.strategies.precision import autocast_of
from convoy.strategies.scoring import count_correct, eval_mode


class HeldOut:
    """Measures weights on a copy of the model. The held-out samples are read once and kept."""

    def __init__(self, model: nn.Module, samples: Samples, settings: Settings) -> None:
        if not len(samples.held_out):
            raise DataError(
                f"of {samples.count} samples none can be held out to measure quality",
                hint="use more data, or an update without quality, such as agwu-mended",
            )
        self._model = copy.deepcopy(model)
        self._layout = tensors.layout_of(self._model)
        self._settings, self._samples = settings, samples
        self._batches: list[tuple[Any, Any]] | None = None

    def __call__(self, flat: Flat) -> float:
        """Share classified right, 0 … 1. Raises DataError where the task is no classification."""
        if self._batches is None:
            self._batches = list(self._samples.quality_batches())
        tensors.write(self._model, self._layout, flat)
        device = torch.device(self._settings.device)
        right = 0
        with eval_mode(self._model), torch.no_grad(), autocast_of(self._settings)():
            for x, y in self._batches:
                x, y = to_device(x, device), to_device(y, device)
                correct = count_correct(call(self._model, channels_last(x) if self._settings.channels_last else x), y)
                if correct is None:
                    raise DataError(
                        "quality is the share of samples classified right, and the model returns no table of scores",
                        hint="use an update without quality, such as agwu-mended or local-sgd",
                    )
                right += correct
        return right / len(self._samples.held_out)
