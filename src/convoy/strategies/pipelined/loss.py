"""What accumulation has to know about a loss function: how it reduces over the samples."""

from __future__ import annotations

from functools import partial
from typing import Any


def _option(loss: Any, name: str) -> Any:
    """An attribute of a loss module, or a keyword of a ``functools.partial``."""
    return loss.keywords.get(name) if isinstance(loss, partial) else getattr(loss, name, None)


def reduces_to_sum(loss: Any) -> bool:
    """Whether the losses of micro-batches add up as they are; else each is weighted by its share of the samples."""
    return bool(_option(loss, "reduction") == "sum")


def inexact_mean(loss: Any) -> str | None:
    """Why the mean over a mini-batch is not the weighted mean of its micro-batches; None where nothing is known."""
    if reduces_to_sum(loss):
        return None
    if _option(loss, "weight") is not None:
        return "class weights"
    ignored = _option(loss, "ignore_index")
    return f"ignore_index {ignored}" if isinstance(ignored, int) and ignored >= 0 else None
