"""Updates of weights: gradients put together in a fixed order, then the user's optimizer on these weights alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from convoy.strategies.pipelined.optimizer import StageOptimizer
from convoy.strategies.tasks.ops import Frame, Partition, Run


class Updates:
    """Makes the update operations of one optimizer. ``together``: gradients are clipped, so that all have to be there
    before the first update."""

    def __init__(self, optimizer: Optimizer, model: nn.Module, clip: float | None) -> None:
        self._optimizer, self._clip = optimizer, clip
        self._model_parameters = list(model.parameters())
        self.together = clip is not None

    def make(self, owner: str, parameters: Sequence[Sequence[nn.Parameter]], axes: Sequence[Partition]) -> Run:
        """Updates the weights of some units. Reads, for each unit, the list of gradients of each of its tiles."""
        mine = list(dict.fromkeys(p for owned in parameters for p in owned))
        others = self._unknown(mine) if self.together else []
        optimizer = StageOptimizer(self._optimizer, [*mine, *others])

        def run(frame: Frame, tile: int, args: list[Any]) -> Sequence[Any]:
            total: dict[nn.Parameter, Tensor | None] = {}
            for owned, axis, tiles in zip(parameters, axes, args, strict=True):
                for place, parameter in enumerate(owned):
                    gradient = put_together(axis, [one[place] for one in tiles])
                    before = total.get(parameter)
                    if gradient is not None and before is not None:
                        gradient = before + gradient
                    total[parameter] = gradient if gradient is not None else before
            for parameter, gradient in total.items():
                if gradient is not None:  # the loss may have added to it: a penalty on weights
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
            if self._clip is not None:
                nn.utils.clip_grad_norm_(self._model_parameters, self._clip)
            optimizer.step(frame.hyper, keep_gradients=True)
            return ()

        return run

    def rest(self, known: Sequence[nn.Parameter]) -> Run | None:
        """Updates what the optimizer trains besides ``known``; None where there is nothing."""
        others = self._unknown(known)
        if not others:
            return None
        optimizer = StageOptimizer(self._optimizer, others)

        def run(frame: Frame, tile: int, args: list[Any]) -> Sequence[Any]:
            optimizer.step(frame.hyper, keep_gradients=True)
            return ()

        return run

    def _unknown(self, known: Iterable[nn.Parameter]) -> list[Tensor]:
        ids = {id(p) for p in known}
        everything = (p for group in self._optimizer.param_groups for p in group["params"])
        return [p for p in everything if p.requires_grad and id(p) not in ids]


def put_together(axis: Partition, tiles: Sequence[Tensor | None]) -> Tensor | None:
    """The gradient of the whole from those of the tiles: rows put one after the other, or summands of batch slices
    added from the first to the last."""
    if tiles[0] is None or len(tiles) == 1:
        return tiles[0]
    there = [t for t in tiles if t is not None]
    if axis.axis == "channels":
        return torch.cat(there)
    total = there[0]
    for tile in there[1:]:
        total = total.add_(tile)
    return total
