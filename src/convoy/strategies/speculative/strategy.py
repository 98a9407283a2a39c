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
from convoy.strategies.speculative.predictors import LabelLast, LabelMean, Zero
from convoy.strategies.speculative.registry import Choice
from convoy.strategies.values import check_one_of, size_in_bytes, whole_number

if TYPE_CHECKING:
    from convoy.strategies.speculative.step import SpeculativeStep

FORMS = ("faithful", "cut")
ENGINES = ("auto", "inline", "threads")
PREDICTOR = "dithered:zero"
"""Of all forms of speculation that were tried the one that saved most for the least loss (docs/lab/speculative.md)."""
PUBLISHED_THRESHOLD = 0.25
"""Of label memory, in an independent re-implementation."""


@dataclass(frozen=True, kw_only=True)
class Speculative(Strategy):
    """Forward and backward pass at the same time on two engines (after Park and Suh 2020).

    ``form``: "faithful" (the whole backward pass is speculated: with a label predictor, as published, from remembered
    softmax and ReLU outcomes, while the forward pass runs; with "zero", samples that the network is sure of are left
    out) or "cut" (the part above a cut trains exactly, the part below starts from a predicted signal); None is "cut"
    where ``cut`` or a predictor for that form alone is given, else "faithful". ``cut``: the module that begins the
    upper part, or the number of the layer after which to cut (cut form); the module from which downwards true outcomes
    are used (faithful form); None: planned. ``predictor``: "label-last", "label-mean", "error-scaled", "per-sample",
    "linear", "network", "zero", "dithered:NAME", "random:SHARE" or "unbiased:NAME:SHARE" (cut form); "label-last",
    "label-mean", "zero" or "dithered:zero" (faithful form); None is "dithered:zero". The published form is
    ``form="faithful", predictor="label-last"``. ``threshold``: below which distance a sample keeps what was
    speculated; 0 accepts nothing and is exact; None where chance alone accepts. ``warmup``: exact mini-batches before.
    ``controller``: "auto[:ON,OFF,EVERY]" speculates only while probes agree (where the gradient is right in the mean,
    always), "always[:EVERY]" regardless. ``memory``: bound on what is remembered, in bytes or as "256MB". ``engine``:
    "threads", "inline" (one thread: the oracle) or "auto".

    Raises OptionError for values that make no sense alone or together.
    """

    name: ClassVar[str] = "speculative"

    form: str | None = None
    cut: str | int | None = None
    predictor: str | None = None
    threshold: float | None = None
    warmup: int = 50
    controller: str = "auto"
    memory: int | str = 256_000_000
    engine: str = "auto"

    def __post_init__(self) -> None:
        if self.form is not None:
            check_one_of("form", self.form, FORMS)
        check_one_of("engine", self.engine, ENGINES)
        if self.predictor is None:
            object.__setattr__(self, "predictor", PREDICTOR)
        choice = self.choice
        if self.form is None:
            object.__setattr__(self, "form", "cut" if self.cut is not None or _cut_only(choice) else "faithful")
        _check_threshold(self.threshold, choice)
        if self.threshold is None and choice.chance is None:
            object.__setattr__(self, "threshold", _usual_threshold(self.form, choice))
        elif self.threshold is not None:
            object.__setattr__(self, "threshold", float(self.threshold))
        _check_cut(self.cut)
        if self.form == "faithful":
            _check_faithful(choice, self.cut)
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
        """The threshold; infinite where chance alone accepts."""
        return math.inf if self.threshold is None else self.threshold

    @property
    def memory_bytes(self) -> int:
        """The bound on what is remembered."""
        return int(self.memory)

    @property
    def suspects(self) -> str | None:
        less = "a smaller share" if self.threshold is None else f"a threshold below {self.threshold:g}"
        guarded = ", or controller='auto'" if Rule.parse(self.controller).always else ""
        return f"speculated signals may be wrong: try {less}{guarded}"

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


def _cut_only(choice: Choice) -> bool:
    """Whether the faithful form has no use for the predictor."""
    by_label = choice.kind in (LabelLast, LabelMean) and not choice.dithered
    return choice.chance is not None or not (choice.kind is Zero or by_label)


def _usual_threshold(form: str | None, choice: Choice) -> float:
    if form == "faithful" and choice.kind is not Zero:
        return PUBLISHED_THRESHOLD
    return 1.0 if form == "faithful" and choice.dithered else 0.5


def _check_threshold(value: object, choice: Choice) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Real) or math.isnan(value) or value < 0:
        raise OptionError(f"threshold is {value!r}", hint="give 0 (exact) or more")
    if choice.chance is not None:
        raise OptionError(
            f"threshold is {value!r}, but predictor {choice.text!r} accepts by chance alone",
            hint="leave the threshold out; the share in the predictor says how many samples are accepted",
        )
    if choice.dithered and math.isinf(value):
        raise OptionError(
            f"threshold is {value!r}, and predictor {choice.text!r} makes up for samples by those computed",
            hint="give a finite threshold, such as 1",
        )


def _check_faithful(choice: Choice, cut: object) -> None:
    if _cut_only(choice):
        raise OptionError(
            f"predictor {choice.text!r} is for the cut form; the faithful form remembers by label or predicts zero",
            hint="choose label-last, label-mean, zero or dithered:zero, or form='cut'",
        )
    if choice.kind is Zero and cut is not None:
        raise OptionError(
            f"cut is {cut!r}, but predictor {choice.text!r} remembers no outcomes of layers above a cut",
            hint="leave cut out, or choose predictor='label-last', or form='cut' to skip samples below it only",
        )


def _check_cut(value: object) -> None:
    named = isinstance(value, str) and value != ""
    if not named and value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise OptionError(
            f"cut is {value!r}, which names no place",
            hint="give the name of a module, such as 'conv2', or the number of a layer, such as 3",
        )
