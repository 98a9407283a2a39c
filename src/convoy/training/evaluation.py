"""Loss and accuracy of a model on data it does not train on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from convoy.errors import DataError
from convoy.graph.timed_pass import intra_op_threads
from convoy.strategies.base import Loss, Settings
from convoy.strategies.batch import batch_size, call, channels_last, split_batch, to_device
from convoy.strategies.scoring import count_correct, eval_mode


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Mean loss per sample, share of samples classified right (None where that makes no sense), and samples."""

    loss: float
    accuracy: float | None
    samples: int

    def to_dict(self) -> dict[str, Any]:
        return {"loss": self.loss, "accuracy": self.accuracy, "samples": self.samples}


def evaluate(model: nn.Module, loss: Loss, loader: Iterable[Any], settings: Settings, threads: int) -> Evaluation:
    """Run ``model`` in eval mode over ``loader`` with ``threads`` intra-op threads; its flags are restored."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    samples, correct_sum, loss_sum = 0, 0, 0.0
    classified = True
    with eval_mode(model), intra_op_threads(threads), torch.no_grad(), autocast(device, settings):
        for batch in loader:
            x, y = split_batch(batch)
            count = batch_size(x)
            x, y = to_device(x, device), to_device(y, device)
            output = call(model, channels_last(x) if settings.channels_last else x)
            loss_sum += float(loss(output, y)) * count
            samples += count
            correct = count_correct(output, y) if classified else None
            classified = correct is not None
            correct_sum += correct or 0
    if samples == 0:
        raise DataError("the loader for evaluation yields no samples", hint="check its data set and batch size")
    return Evaluation(loss_sum / samples, correct_sum / samples if classified else None, samples)


def autocast(device: torch.device, settings: Settings) -> contextlib.AbstractContextManager[Any]:
    if settings.precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()
