"""Predictors by name. A new one is a class and a line here.

``label-mean`` · ``dithered:label-mean`` (who is accepted is drawn, the likelier the nearer the prediction is, and
who is not makes up for it) · ``unbiased:label-mean:0.5`` (half of the samples keep the prediction, drawn by chance, and
the others make up for it) · ``random:0.5`` (half of the samples, drawn by chance, are skipped).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from convoy.errors import OptionError
from convoy.strategies.speculative.predictors import (
    ErrorScaled,
    LabelLast,
    LabelMean,
    Linear,
    Network,
    Predictor,
    Zero,
)
from convoy.strategies.speculative.samples import PerSample

PREDICTORS: dict[str, type[Predictor]] = {
    kind.name: kind for kind in (LabelLast, LabelMean, ErrorScaled, PerSample, Linear, Network, Zero)
}

_ALL = f"one of: {', '.join(PREDICTORS)}, dithered:NAME, random:X, unbiased:NAME:X"


@dataclass(frozen=True, slots=True)
class Choice:
    """A predictor and who accepts: ``chance`` None is the test against the threshold, else each sample is accepted with
    that probability; ``unbiased`` then makes up for it (control variate). ``dithered``: the test is drawn, with
    probabilities by the distance, and made up for too."""

    kind: type[Predictor]
    chance: float | None = None
    unbiased: bool = False
    dithered: bool = False
    text: str = ""
    """As it was written."""

    @classmethod
    def parse(cls, text: str) -> Choice:
        """Raises OptionError for what is no predictor. A share that is drawn by chance has to be said."""
        if not isinstance(text, str):
            raise OptionError(f"predictor is {text!r}", hint=_ALL)
        head, _, rest = text.partition(":")
        if head == "unbiased":
            name, _, share = rest.partition(":")
            if not name:
                raise OptionError(
                    f"predictor {text!r} says neither whose prediction samples keep nor the share that does",
                    hint="write unbiased:NAME:X, such as unbiased:label-mean:0.5",
                )
            return cls(_kind(name), _share(share, text, f"unbiased:{name}:0.5"), unbiased=True, text=text)
        if head == "dithered":
            if not rest:
                raise OptionError(
                    f"predictor {text!r} does not say whose prediction samples keep",
                    hint="write dithered:NAME, such as dithered:zero",
                )
            return cls(_kind(rest), dithered=True, text=text)
        if head == "random":
            return cls(Zero, _share(rest, text, "random:0.5"), text=text)
        return cls(_kind(text), text=text)


def _kind(name: str) -> type[Predictor]:
    if name not in PREDICTORS:
        close = difflib.get_close_matches(name, PREDICTORS, n=1)
        raise OptionError(
            f"predictor {name!r} is unknown",
            hint=f"did you mean {close[0]}?" if close else _ALL,
        )
    return PREDICTORS[name]


def _share(text: str, whole: str, example: str) -> float:
    if not text:
        raise OptionError(
            f"predictor {whole!r} does not say the share of samples", hint=f"write it behind, such as {example}"
        )
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0.0 <= share < 1.0:
        raise OptionError(
            f"predictor {whole!r} accepts a share of {text}", hint="give a number from 0 to below 1, such as 0.5"
        )
    return share
