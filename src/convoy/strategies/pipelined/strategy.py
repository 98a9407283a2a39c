"""``Pipelined``: what a user may choose about a pipeline with stale weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from torch import nn
from torch.optim import Optimizer

from convoy.errors import OptionError
from convoy.events.event import Sink
from convoy.strategies.base import Loss, Settings, Strategy
from convoy.strategies.pipelined.clock import CLOCKS, PLACEMENTS
from convoy.strategies.pipelined.corrections import Corrections
from convoy.strategies.pipelined.step import PipelinedStep
from convoy.strategies.pipelined.suspects import suspects

ENGINES = ("auto", "inline", "threads", "streams", "ray")
_OPEN: Any = None
"""Of a clock and of micro-batches: not given, so as published, or what ``stages="auto"`` chooses."""


@dataclass(frozen=True, kw_only=True)
class Pipelined(Strategy):
    """Pipelined training with stale weights (Zhang and Abdelrahman 2021).

    Say where to cut in one of three ways: ``stages`` (K + 1 of them, cut where the measured cost is balanced; 2 when
    nothing is said), ``cuts`` (module names, each the first of the next stage) or ``ppv`` (layer numbers after which
    the registers stand). ``placement``: "colocated" (K + 1 workers) or "split" (2K + 1). ``clock``: "registers"
    (published, delay 2(K - i + 1)) or "1f1b" (delay min(K - i + 1 + ``slack``, 2(K - i + 1)), ``slack`` from 0 to K).
    ``accumulate``: micro-batches a mini-batch enters in, 1 where it is not given. ``correction``: None, or one of
    "stash", "predict:linear", "predict:momentum", "spike", "pipemare", "dc-asgd", "stage-lr", or a sum such as
    "predict+spike" ("predict" is linear). ``recut``: "auto" cuts anew at a drain when the running workers' loads
    differ by more than 5 %. ``stages="auto"`` chooses stages, cut, clock, micro-batches and correction from a forecast
    (what is given stays; correction="none" is none). ``max_staleness``: a pipeline whose stalest stage reads weights
    that are on average older, in updates, is refused, or not chosen; with micro-batches, some forward passes of it
    read weights as old as the average rounded up. ``engine``: "threads", "streams" (CUDA), "inline" (one thread: the
    oracle), "ray" (an actor a stage) or "auto".
    ``address``: of the Ray cluster whose machines the actors may use, "HOST:PORT" or "auto"; None is this machine.
    ``insecure``: take a cluster without a token too.

    Raises OptionError for values that make no sense alone or together.
    """

    name: ClassVar[str] = "pipelined"

    stages: int | str | None = None
    cuts: Sequence[str] | None = None
    ppv: Sequence[int] | None = None
    placement: str = "colocated"
    clock: str = _OPEN
    slack: int = 0
    accumulate: int = _OPEN
    correction: str | None = None
    recut: str = "off"
    max_staleness: float | None = None
    engine: str = "auto"
    address: str | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        given = [name for name in ("stages", "cuts", "ppv") if getattr(self, name) is not None]
        if len(given) > 1:
            raise OptionError(
                f"{' and '.join(given)} are given, and each says where to cut", hint="give only one of them"
            )
        if isinstance(self.stages, str) and self.stages != "auto":
            raise OptionError(f"stages is {self.stages!r}", hint="give a number, or 'auto'")
        if isinstance(self.stages, int) and self.stages < 1:
            raise OptionError(f"stages is {self.stages}", hint="a pipeline has at least 1 stage; 2 is usual")
        if self.stages == "auto" and self.placement != "colocated":
            raise OptionError(f"stages='auto' chooses among colocated workers, not {self.placement!r}", hint="drop it")
        if self.max_staleness is not None and not self.max_staleness >= 0:
            raise OptionError(f"max_staleness is {self.max_staleness}", hint="give a number of updates from 0 up")
        for name in ("cuts", "ppv"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, tuple([value] if isinstance(value, (str, int)) else value))
        if self.ppv is not None:
            self._check_ppv(tuple(self.ppv))
        if self.stages != "auto":
            object.__setattr__(self, "clock", self.clock or "registers")
            object.__setattr__(self, "accumulate", 1 if self.accumulate is _OPEN else self.accumulate)
        _one_of("placement", self.placement, PLACEMENTS)
        if self.clock is not _OPEN:
            _one_of("clock", self.clock, CLOCKS)
        _one_of("engine", self.engine, ENGINES)
        if (self.address is not None or self.insecure) and self.engine not in ("ray", "inline"):
            raise OptionError(
                f"address and insecure are for engine 'ray', and engine is {self.engine!r}", hint="add engine='ray'"
            )
        if self.engine == "ray" and self.placement == "split":
            raise OptionError(
                "placement 'split' has two workers share a stage's weights, which actors cannot",
                hint="use placement 'colocated' with engine 'ray'",
            )
        if self.placement == "split" and self.clock != "registers":
            raise OptionError(
                f"placement 'split' with clock {self.clock!r} runs at two thirds of the speed and is refused",
                hint="use placement 'colocated', or the registers clock",
            )
        if self.slack < 0:
            raise OptionError(f"slack is {self.slack}", hint="give a number from 0 to the number of cuts")
        if self.slack and self.clock != "1f1b":
            raise OptionError(f"slack={self.slack} is only for clock '1f1b'", hint="add clock='1f1b' or drop slack")
        self._check_slack()
        if self.accumulate is not _OPEN and self.accumulate < 1:
            raise OptionError(f"accumulate is {self.accumulate}", hint="give 1 (whole mini-batches) or more")
        Corrections.parse(self.correction)
        _one_of("recut", self.recut, ("off", "auto"))
        if self.recut == "auto" and (self.cuts is not None or self.ppv is not None or self.placement == "split"):
            what = "placement 'split'" if self.placement == "split" else "cuts" if self.cuts is not None else "ppv"
            raise OptionError(
                f"recut='auto' moves cuts that convoy chose, between colocated workers, and {what} is given",
                hint=f"drop recut, or {what}",
            )

    def _check_slack(self) -> None:
        """From 0 to K; "auto" leaves out what the slack does not fit."""
        if self.stages == "auto":
            return
        places = self.cuts if self.cuts is not None else self.ppv
        cuts = len(places) if places is not None else int(self.stages or 2) - 1
        if self.slack > cuts:
            raise OptionError(
                f"slack is {self.slack}, and a pipeline of {cuts + 1} stage{'s' * (cuts > 0)} has {cuts} "
                f"cut{'s' * (cuts != 1)}",
                hint="give a number from 0 to the number of cuts",
            )

    @staticmethod
    def _check_ppv(ppv: tuple[int, ...]) -> None:
        if any(not isinstance(p, int) or p < 1 for p in ppv) or any(a >= b for a, b in pairwise(ppv)):
            raise OptionError(
                f"ppv is {list(ppv)}, which is not a rising list of layer numbers", hint="write for example ppv=[7, 13]"
            )

    @property
    def suspects(self) -> str | None:
        return suspects(self, automatic=self.stages == "auto")

    def bind(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: Optimizer,
        *,
        settings: Settings | None = None,
        sink: Sink | None = None,
    ) -> PipelinedStep:
        if self.engine == "ray":
            from convoy.strategies.pipelined.remote.step import RemoteStep

            return RemoteStep(self, model, loss, optimizer, settings or Settings(), sink)
        return PipelinedStep(self, model, loss, optimizer, settings or Settings(), sink)


def _one_of(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise OptionError(f"{name} is {value!r}", hint=f"choose one of {', '.join(choices)}")
