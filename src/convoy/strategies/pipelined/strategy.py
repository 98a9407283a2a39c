"""``Pipelined``: what a user may choose about a pipeline with stale weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import nn
from torch.optim import Optimizer

from convoy.errors import OptionError
from convoy.events.event import Sink
from convoy.strategies.base import Loss, Settings, Strategy
from convoy.strategies.pipelined.clock import CLOCKS, PLACEMENTS
from convoy.strategies.pipelined.corrections import Corrections
from convoy.strategies.pipelined.step import PipelinedStep

ENGINES = ("auto", "inline", "threads", "streams")


@dataclass(frozen=True, kw_only=True)
class Pipelined(Strategy):
    """Pipelined training with stale weights (Zhang and Abdelrahman 2021).

    Say where to cut in one of three ways: ``stages`` (K + 1 of them, cut where the measured cost is balanced; 2 when
    nothing is said), ``cuts`` (module names, each the first of the next stage) or ``ppv`` (layer numbers after which
    the registers stand). ``placement``: "colocated" (K + 1 workers) or "split" (2K + 1). ``clock``: "registers"
    (published, delay 2(K - i + 1)) or "1f1b" (delay K - i + 1 + ``slack``). ``accumulate``: micro-batches a mini-batch
    enters in. ``correction``: None, or one of "stash", "predict:linear", "predict:momentum", "spike",
    "pipemare", "dc-asgd", "stage-lr", or a sum such as "predict:linear+spike". ``recut``: "auto"
    cuts anew at a drain when the running workers' loads differ by more than 5 %. ``engine``: "threads",
    "streams" (CUDA), "inline" (one thread: the oracle) or "auto".

    Raises OptionError for values that make no sense alone or together.
    """

    name: ClassVar[str] = "pipelined"

    stages: int | None = None
    cuts: Sequence[str] | None = None
    ppv: Sequence[int] | None = None
    placement: str = "colocated"
    clock: str = "registers"
    slack: int = 0
    accumulate: int = 1
    correction: str | None = None
    recut: str = "off"
    engine: str = "auto"

    def __post_init__(self) -> None:
        given = [name for name in ("stages", "cuts", "ppv") if getattr(self, name) is not None]
        if len(given) > 1:
            raise OptionError(
                f"{' and '.join(given)} are given, and each says where to cut", hint="give only one of them"
            )
        if self.stages is not None and self.stages < 1:
            raise OptionError(f"stages is {self.stages}", hint="a pipeline has at least 1 stage; 2 is usual")
        for name in ("cuts", "ppv"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, tuple([value] if isinstance(value, (str, int)) else value))
        if self.ppv is not None:
            self._check_ppv(tuple(self.ppv))
        _one_of("placement", self.placement, PLACEMENTS)
        _one_of("clock", self.clock, CLOCKS)
        _one_of("engine", self.engine, ENGINES)
        if self.placement == "split" and self.clock != "registers":
            raise OptionError(
                f"placement 'split' with clock {self.clock!r} runs at two thirds of the speed and is refused",
                hint="use placement 'colocated', or the registers clock",
            )
        if self.slack < 0:
            raise OptionError(f"slack is {self.slack}", hint="give a number from 0 to the number of cuts")
        if self.slack and self.clock != "1f1b":
            raise OptionError(f"slack={self.slack} is only for clock '1f1b'", hint="add clock='1f1b' or drop slack")
        if self.accumulate < 1:
            raise OptionError(f"accumulate is {self.accumulate}", hint="give 1 (whole mini-batches) or more")
        Corrections.parse(self.correction)
        _one_of("recut", self.recut, ("off", "auto"))

    @staticmethod
    def _check_ppv(ppv: tuple[int, ...]) -> None:
        if any(not isinstance(p, int) or p < 1 for p in ppv) or any(a >= b for a, b in pairwise(ppv)):
            raise OptionError(
                f"ppv is {list(ppv)}, which is not a rising list of layer numbers", hint="write for example ppv=[7, 13]"
            )

    @property
    def suspects(self) -> str | None:
        if self.correction:
            return f"correction {self.correction!r} changes the effective step: try without it"
        return "stale weights bear less: try clock='1f1b' or accumulate=4"

    def bind(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: Optimizer,
        *,
        settings: Settings | None = None,
        sink: Sink | None = None,
    ) -> PipelinedStep:
        return PipelinedStep(self, model, loss, optimizer, settings or Settings(), sink)


def _one_of(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise OptionError(f"{name} is {value!r}", hint=f"choose one of {', '.join(choices)}")
