"""The course of the hyper-parameters: what the user's scheduler will say at later mini-batches, without stepping it.

A node works for a whole round on its own, so it is told beforehand. The forecast is the scheduler itself, copied, and
let run on a stand-in for the optimizer that has its groups and nothing else.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from torch.optim import Optimizer

Groups: TypeAlias = "list[dict[str, Any]]"
Rows: TypeAlias = "list[list[Any]]"
"""[how many mini-batches, the optimizer's groups without their parameters], one after the other."""


class Course:
    """``total``: scheduler steps of the whole run; ``per_step``: whether the scheduler steps per mini-batch."""

    def __init__(self, optimizer: Optimizer, scheduler: Any, *, per_step: bool) -> None:
        self._optimizer = optimizer
        self._scheduler = scheduler if per_step else None

    def rows(self, ahead: Iterable[int]) -> Rows:
        """The groups after so many more scheduler steps each (rising numbers), equal neighbours joined."""
        rows: Rows = []
        done, advance = 0, self._forecast()
        groups = hyper_parameters(self._optimizer)
        for steps in ahead:
            while done < steps:
                groups = advance()
                done += 1
            if rows and rows[-1][1] == groups:
                rows[-1][0] += 1
            else:
                rows.append([1, groups])
        return rows

    def _forecast(self) -> Callable[[], Groups]:
        if self._scheduler is None:
            return lambda: hyper_parameters(self._optimizer)
        stand_in = _StandIn(hyper_parameters(self._optimizer))
        scheduler = copy.deepcopy(self._scheduler, {id(self._optimizer): stand_in})

        def advance() -> Groups:
            scheduler.step()
            return [dict(group) for group in stand_in.param_groups]

        return advance


class _StandIn:
    """What schedulers touch of an optimizer."""

    def __init__(self, groups: Groups) -> None:
        self.param_groups = groups
        self.defaults: dict[str, Any] = dict(groups[0])
        self.state: dict[Any, Any] = {}
        self._opt_called = True  # schedulers warn where no update came before their first step

    def step(self) -> None:
        """Schedulers look whether it was wrapped."""

    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]


def hyper_parameters(optimizer: Optimizer) -> Groups:
    """The optimizer's groups without their parameters; plain values."""
    return [
        {k: v.item() if isinstance(v, torch.Tensor) else copy.copy(v) for k, v in group.items() if k != "params"}
        for group in optimizer.param_groups
    ]


def apply(optimizer: Optimizer, groups: Groups) -> None:
    """Put the values into the optimizer's own groups; tensors among them are filled in place."""
    for own, given in zip(optimizer.param_groups, groups, strict=True):
        for name, value in given.items():
            if isinstance(own.get(name), torch.Tensor):
                own[name].fill_(value)
            else:
                own[name] = value
