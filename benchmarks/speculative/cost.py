"""Modelled time of a mini-batch, in units of an exact one on one engine: operations alone, on equal engines.

The machine's noise and the price of an action are left out, so that what variants cost can be compared anywhere. Real
times are the business of ``speed.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from convoy.graph.capture import capture
from convoy.strategies.base import Settings
from convoy.strategies.batch import arguments
from convoy.strategies.speculative import Speculative
from convoy.strategies.speculative.build import ENGINES, Prepared, forecast, prepare
from convoy.strategies.tasks.units import Unit

GRID = tuple(i / 10 for i in range(11))
"""Acceptances that are modelled; between them the time is interpolated."""


@dataclass(frozen=True)
class Costs:
    """``exact``, ``probe``, ``speculated`` (one for each of ``GRID``): on two engines. ``skipped``: exact without the
    backward pass below the cut, on two engines. ``pipelined``: the slower of two stages, parted at the cut."""

    exact: float
    probe: float
    speculated: tuple[float, ...]
    skipped: float
    pipelined: float

    def of(self, mode: str, accepted: float) -> float:
        """Of a mini-batch by its mode ("exact", "probe" or "speculate")."""
        if mode != "speculate":
            return self.exact if mode == "exact" else self.probe
        place = min(int(accepted * 10), 9)
        share = 10 * accepted - place
        return (1 - share) * self.speculated[place] + share * self.speculated[place + 1]


def costs(model: nn.Module, images: Tensor, strategy: Speculative, cut: str | int | None = None) -> Costs:
    """``cut``: that of the controls; None is the planned one."""
    prepared, lower = (_prepared(model, images, s) for s in (strategy, Speculative(form="cut", cut=cut)))
    one = forecast(prepared, "exact", 1, 0.0)
    inside, seconds = lower.region.inside, lower.how.seconds

    def without(kind: str, unit: Unit, share: float) -> float:
        return 0.0 if kind != "F" and unit.name in inside else seconds(kind, unit, share)

    skipping = replace(lower, how=replace(lower.how, seconds=without))
    below = sum(sum(lower.flops[name]) for name in inside) / sum(map(sum, lower.flops.values()))
    return Costs(
        exact=forecast(prepared, "exact", ENGINES, 0.0) / one,
        probe=forecast(prepared, "probe", ENGINES, 0.0) / one,
        speculated=tuple(forecast(prepared, "speculate", ENGINES, a) / one for a in GRID),
        skipped=forecast(skipping, "exact", ENGINES, 0.0) / one,
        pipelined=max(below, 1 - below),
    )


def _prepared(model: nn.Module, images: Tensor, strategy: Speculative) -> Prepared:
    graph, optimizer = capture(model, (images,)), torch.optim.SGD(model.parameters(), lr=0.1)
    loss = nn.functional.cross_entropy
    return prepare(strategy, graph, model, loss, optimizer, Settings(threads=1), None, graph.bind(*arguments(images)))
