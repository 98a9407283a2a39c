"""``Concurrent``: what a user may choose about CONV and non-CONV tasks side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn
from torch.optim import Optimizer

from convoy.events.event import Sink
from convoy.strategies.base import Loss, Settings, Strategy
from convoy.strategies.concurrent.step import ConcurrentStep
from convoy.strategies.values import check_one_of, whole_number

PLACEMENTS = ("planned", "kind")
ENGINES = ("auto", "inline", "threads", "streams")


@dataclass(frozen=True, kw_only=True)
class Concurrent(Strategy):
    """CONV tasks on one engine and non-CONV tasks on another, pipelined by groups of output channels (Choi, Lee, Sohn,
    Yu and Rhee 2024), on two threads of a CPU or two streams of a GPU. The numbers are those of sequential training:
    bit for bit with one group, else but for the last digits, since kernels add up a group in another order.

    ``groups``: of output channels, so many in every layer that is wide enough; None: from measured costs.
    ``placement``: "kind", the published one, where every task runs on the engine of its kind, or "planned", where
    an engine with nothing to do takes a task of the other kind. ``engine``: "threads", "streams" (CUDA), "inline" (one
    thread: the oracle) or "auto".

    Raises OptionError for values that make no sense.
    """

    name: ClassVar[str] = "concurrent"

    groups: int | None = None
    placement: str = "planned"
    engine: str = "auto"

    def __post_init__(self) -> None:
        if self.groups is not None:
            hint = "give 1 (whole layers) or more, or leave it out to have it measured"
            object.__setattr__(self, "groups", whole_number("groups", self.groups, hint))
        check_one_of("placement", self.placement, PLACEMENTS)
        check_one_of("engine", self.engine, ENGINES)

    def bind(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: Optimizer,
        *,
        settings: Settings | None = None,
        sink: Sink | None = None,
    ) -> ConcurrentStep:
        return ConcurrentStep(
            model,
            loss,
            optimizer,
            settings or Settings(),
            sink,
            groups=self.groups,
            placement=self.placement,
            engine=self.engine,
        )
