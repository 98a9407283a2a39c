"""``Speculative``: what a user may choose about speculative backpropagation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, ClassVar

from torch import nn
from torch.optim import Optimizer

from convoy.errors import OptionError
from convoy.events.event import Sink
from convoy.strategies.base import Loss, Settings, Strategy
from convoy.strategies.speculative.controller import Rule
from convoy.strategies.speculative.registry import Choice
from convoy.strategies.values import check_one_of, size_in_bytes, whole_number

if TYPE_CHECKING:
    from convoy.strategies.speculative.step import SpeculativeStep

FORMS = ("cut", "faithful")
ENGINES = ("auto", "inline", "threads")
DEFAULTS = {"cut": ("label-mean", 0.5), "faithful": ("label-last", 0.25)}


@dataclass(frozen=True, kw_only=True)
class Speculative(Strategy):
    """Forward and backward pass at the same time on two engines (after Park and Suh 2020).

    ``form``: "faithful" (per label remembered softmax and ReLU outcomes; the error goes back while the forward pass
    runs) or "cut" (the part above a cut trains exactly, the part below starts from a predicted signal). ``cut``: the
    module that begins the upper part, or the number of the layer after which to cut (cut form); the module from which
    downwards true outcomes are used (faithful form); None: planned. ``predictor``: "label-last", "label-mean",
    "error-scaled", "per-sample", "linear", "network", "zero", "random:SHARE" or "unbiased:NAME:SHARE" (cut form);
    "label-last" or "label-mean" (faithful form). ``threshold``: below which distance a sample keeps what was
    speculated; 0 accepts nothing and is exact. ``warmup``: exact mini-batches before. ``controller``:
    "auto[:ON,OFF,EVERY]" speculates only while probes agree, "always[:EVERY]" regardless. ``memory``: bound on
    what is remembered, in bytes or as "256MB". ``engine``: "threads", "inline" (one thread: the oracle) or "auto".

    Raises OptionError for values that make no sense alone or together.
    """

    name: ClassVar[str] = "speculative"

    form: str = "cut"
    cut: str | int | None = None
    predictor: str | None = None
    threshold: float | None = None
    warmup: int = 50
    controller: str = "auto"
    memory: int | str = 256_000_000
    engine: str = "auto"

    def __post_init__(self) -> None:
        check_one_of("form", self.form, FORMS)
        check_one_of("engine", self.engine, ENGINES)
        predictor, threshold = DEFAULTS[self.form]
        if self.predictor is None:
            object.__setattr__(self, "predictor", predictor)
        if self.threshold is None:
            object.__setattr__(self, "threshold", threshold)
        choice = self.choice
        if self.form == "faithful" and (choice.chance is not None or not choice.kind.name.startswith("label-")):
            raise OptionError(
                f"predictor {self.predictor!r} is for the cut form; the faithful form remembers by label",
                hint="choose label-last or label-mean, or form='cut'",
            )
        _check_threshold(self.threshold)
        _check_cut(self.cut)
        warmup = whole_number("warmup", self.warmup, "give 1 or more exact mini-batches to remember from")
        memory = size_in_bytes(
            "memory", self.memory, "give the bytes that may be remembered, or a size such as '256MB'"
        )
        object.__setattr__(self, "warmup", warmup)
        object.__setattr__(self, "memory", memory)
        Rule.parse(self.controller)

    @property
    def choice(self) -> Choice:
        """The predictor, parsed."""
        assert self.predictor is not None
        return Choice.parse(self.predictor)

    @property
    def limit(self) -> float:
        """The threshold."""
        assert self.threshold is not None
        return float(self.threshold)

    @property
    def memory_bytes(self) -> int:
        """The bound on what is remembered."""
        return int(self.memory)

    @property
    def suspects(self) -> str | None:
        return f"speculated signals may be wrong: try a threshold below {self.threshold:g}, or controller='auto'"

    def bind(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: Optimizer,
        *,
        settings: Settings | None = None,
        sink: Sink | None = None,
    ) -> SpeculativeStep:
        from convoy.strategies.speculative.step import SpeculativeStep

        return SpeculativeStep(self, model, loss, optimizer, settings or Settings(), sink)


def _check_threshold(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or math.isnan(value) or value < 0:
        raise OptionError(f"threshold is {value!r}", hint="give 0 (exact) or more")


def _check_cut(value: object) -> None:
    named = isinstance(value, str) and value != ""
    if not named and value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise OptionError(
            f"cut is {value!r}, which names no place",
            hint="give the name of a module, such as 'conv2', or the number of a layer, such as 3",
        )
