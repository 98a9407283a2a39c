"""The result of one mini-batch, a value that is read only when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convoy.engines.engine import Engine
from convoy.schedule.action import Action
from convoy.strategies.batch import map_tensors, tensors
from convoy.strategies.pipelined.program import Batch


class PipelinedResult:
    """``loss`` and ``output`` wait until the last stage has seen the last part of the batch."""

    __slots__ = ("_action", "_batch", "_engine", "batch", "target")

    def __init__(self, number: int, batch: Batch, target: Any, engine: Engine, action: Action) -> None:
        self.batch = number
        self.target = target
        self._batch, self._engine, self._action = batch, engine, action

    @property
    def ready(self) -> bool:
        return self._engine.is_done(self._action)

    @property
    def loss(self) -> Tensor:
        """The mini-batch's mean loss (parts weighted by their samples), a detached scalar."""
        self._engine.wait(self._action)
        losses = self._batch.losses
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    @property
    def output(self) -> Any:
        """What the model returned, detached; the parts of a mini-batch joined along their first dimension."""
        self._engine.wait(self._action)
        return join(self._batch.outputs)


def join(parts: Sequence[Any]) -> Any:
    """Outputs of the same structure, joined tensor by tensor along dimension 0; scalars are averaged."""
    if len(parts) == 1:
        return parts[0]
    leaves = [iter(list(tensors(part))) for part in parts]

    def one(_: Tensor) -> Tensor:
        group = [next(leaf) for leaf in leaves]
        return torch.cat(group) if group[0].dim() else torch.stack(group).mean(0)

    return map_tensors(one, parts[0])
