"""How many samples of a batch were classified right, whatever shape model and loader give their values."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

_TARGET_KEYS = ("labels", "label", "target", "targets", "y")


def count_correct(output: Any, target: Any) -> int | None:
    """Samples whose largest output is the target, where ``output`` is (or holds as ``logits`` or first) a tensor
    [N, C] and ``target`` (or its "labels") integers [N]; else None."""
    scores = scores_of(output)
    labels = labels_of(target)
    if scores is None or labels is None or scores.dim() != 2 or labels.dim() != 1 or len(scores) != len(labels):
        return None
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        return None
    return int((scores.argmax(1) == labels).sum())


def scores_of(output: Any) -> torch.Tensor | None:
    """The class scores in what a model returned: the tensor itself, ``logits``, or the first of a tuple."""
    if isinstance(output, torch.Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(logits, torch.Tensor):
        return logits
    if isinstance(output, (tuple, list)) and output:
        return scores_of(output[0])
    return None


def labels_of(target: Any) -> torch.Tensor | None:
    if isinstance(target, Mapping):
        target = next((target[key] for key in _TARGET_KEYS if key in target), None)
    return target if isinstance(target, torch.Tensor) else None


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """``model`` in eval mode; every module gets its own flag back (a frozen BatchNorm stays as it was)."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag
