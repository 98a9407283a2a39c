"""Controls: what is gained without speculation by not training the lower part of a network at every mini-batch.

A mini-batch is *skipped* by pattern or by chance; the lower part's weights then get nothing, or something remembered.
On a skipped mini-batch the lower part needs no gradient, so that its backward pass is really saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from convoy.events.event import Event
from convoy.graph.capture import capture
from convoy.graph.random import Key, stable_seed
from convoy.strategies.speculative.region import cut_region
from convoy.strategies.tasks.units import units_of

FILLS = ("none", "zero", "last", "ema")
DECAY = 0.9


@dataclass
class Skipping:
    """Which mini-batches train the lower part exactly: a share ``1 − rate``, drawn by (seed, mini-batch), or every
    second one (``alternate``), or none (rate 1); before mini-batch ``begin`` all do.

    ``fill``: what the lower part gets on the others: nothing ("none": no step at all), a gradient of zero, the last
    exact one, or the decaying mean of exact ones. ``unbiased``: ĝ = h + (b/(1 − ρ))(g − h).
    """

    parameters: Sequence[nn.Parameter]
    optimizer: torch.optim.Optimizer
    rate: float
    seed: int = 0
    alternate: bool = False
    fill: str = "none"
    unbiased: bool = False
    begin: int = 0
    skipped: int = 0
    _kept: dict[nn.Parameter, Tensor] = field(default_factory=dict)
    exact: bool = True
    """Whether the next mini-batch trains the lower part."""

    def __post_init__(self) -> None:
        self.optimizer.register_step_pre_hook(self._fill)
        self.choose(0)

    def __call__(self, event: Event) -> None:
        """A callback of the trainer: after each mini-batch, for the next one. What was kept of gradients is in no
        checkpoint: a resumed run fills from its next exact mini-batch on."""
        if event.kind == "step":
            self.choose(event.batch + 1)
        elif event.kind == "run" and event.name == "begin":
            self.choose(event.data.get("resumed_from") or 0)

    def choose(self, batch: int) -> None:
        if batch < self.begin:
            self.exact = True
        elif self.alternate:
            self.exact = batch % 2 == 0
        else:
            generator = torch.Generator().manual_seed(stable_seed(Key(self.seed, batch, 0, 0), "skip"))
            self.exact = bool(torch.rand((), generator=generator) >= self.rate)
        for parameter in self.parameters:
            parameter.requires_grad_(self.exact)

    def _fill(self, optimizer: torch.optim.Optimizer, *rest: Any) -> None:
        self.skipped += not self.exact
        if self.fill == "none":
            return
        for p in self.parameters:
            h = torch.zeros_like(p) if self.fill == "zero" else self._kept.get(p)
            if not self.exact:
                p.grad = None if h is None else h.clone()
                continue
            g = p.grad
            if g is None:
                continue
            if self.fill != "zero":
                keep = DECAY if self.fill == "ema" and h is not None else 0.0
                self._kept[p] = g.detach().clone() if h is None else keep * h + (1 - keep) * g.detach()
            if self.unbiased and h is not None:
                p.grad = h + (g - h) / (1 - self.rate)


def lower_part(model: nn.Module, image: Tensor, cut: str | int | None) -> tuple[str, list[nn.Parameter]]:
    """The name of the cut, and the weights below it: as the cut form would choose."""
    units = units_of(capture(model, (image,)))
    region = cut_region(units, cut)
    found = [p for unit in units.units if unit.name in region.inside for p in unit.parameters]
    return region.cut, list(dict.fromkeys(found))
