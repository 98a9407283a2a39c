"""When to speculate: after an exact warm-up, while the gradients that it gives agree with the exact ones.

Every ``every``-th mini-batch after the warm-up is a *probe*: it trains exactly, and the gradient that speculation would
have given is computed beside it. Their cosine, smoothed, switches speculation on and off, with hysteresis; so does the
share of accepted samples, below which speculating only costs time. A decision from data: a replay comes to the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from convoy.errors import OptionError

Mode = Literal["exact", "probe", "speculate"]

_HINT = (
    "write auto, auto:ON,OFF,EVERY (such as auto:0.7,0.5,32), always (no probes) or always:EVERY (such as always:32)"
)


@dataclass(frozen=True)
class Rule:
    """On at an agreement of ``on`` or more, off below ``off``. ``always``: speculate after the warm-up whatever the
    probes say (they are made all the same, so that it is seen); ``every`` 0, which only plain "always" means: no
    probes."""

    on: float = 0.7
    off: float = 0.5
    every: int = 32
    always: bool = False

    @classmethod
    def parse(cls, text: str) -> Rule:
        """``auto``, ``auto:0.7,0.5,32``, ``always`` or ``always:32`` (a probe every so many mini-batches)."""
        if not isinstance(text, str):
            raise OptionError(f"controller is {text!r}", hint=_HINT)
        name, colon, rest = text.partition(":")
        try:
            if name == "auto":
                on, off, every = rest.split(",") if rest else (cls.on, cls.off, cls.every)
                rule = cls(float(on), float(off), int(every))
                right = -1.0 <= rule.off <= rule.on <= 1.0 and rule.every >= 1
            elif name == "always":
                rule = cls(-1.0, -1.0, int(rest) if colon else 0, always=True)
                right = not colon or rule.every >= 1
            else:
                right = False
        except ValueError:
            right = False
        if not right:
            raise OptionError(f"controller is {text!r}", hint=_HINT)
        if rule.every == 1:
            raise OptionError(
                f"controller {text!r} makes every mini-batch a probe, and probes train exactly, so it never speculates",
                hint="let every second or a later mini-batch be a probe: EVERY of 2 or more",
            )
        return rule


class Controller:
    """The state of one run. ``mode(batch)`` says how a mini-batch is trained; ``observe`` takes what a probe found.

    ``unbiased``: what is speculated is right in the mean, so that agreement is told but not asked for. ``skips``:
    nothing is predicted, accepted samples are left out, so that any share of them saves time.
    """

    SMOOTHING = 0.5
    ENOUGH, TOO_FEW = 0.3, 0.15
    """Share of accepted samples, smoothed: speculation begins at the one and ends below the other."""
    PATIENCE = 4
    """After so many probes without speculation, that is told."""

    def __init__(self, rule: Rule, warmup: int, *, unbiased: bool = False, skips: bool = False) -> None:
        self._rule, self._warmup, self._unbiased = rule, warmup, unbiased
        self._enough, self._too_few = (0.0, 0.0) if skips else (self.ENOUGH, self.TOO_FEW)
        self.on = rule.always
        self.agreement: float | None = None
        """Smoothed cosine of speculated and exact gradients; None before the first probe."""
        self.accepted: float | None = None
        """Smoothed share of the samples that probes would have accepted."""
        self._probes, self._ever = 0, self.on

    def mode(self, batch: int) -> Mode:
        since = batch - self._warmup
        if since < 0:
            return "exact"
        if self._rule.every and since % self._rule.every == 0:
            return "probe"
        return "speculate" if self.on else "exact"

    def too_short(self, batches: int) -> str | None:
        """Why a run of so many mini-batches never speculates; None where it may."""
        warmup, probe = self._warmup, min(self._rule.every, 1)
        if batches > warmup + probe:
            return None
        rest = f"{warmup} of them warm-up and the last one a probe" if batches > warmup else f"its warm-up {warmup}"
        return f"the run has {batches} mini-batches, {rest}, so it will never speculate: give a smaller warmup"

    def idle(self) -> str | None:
        """Right after probe ``PATIENCE``, why nothing was speculated so far; else None."""
        if self._probes != self.PATIENCE or self._ever:
            return None
        assert self.accepted is not None and self.agreement is not None
        if self.accepted < self._enough:
            found = f"probes accept {self.accepted:.0%} of the samples, and {self._enough:.0%} are needed"
            return f"nothing was speculated so far: {found}; give a higher threshold or another predictor"
        found = f"the gradients' agreement is {self.agreement:.2f}, and {self._rule.on:g} is needed"
        return f"nothing was speculated so far: {found}; give a lower threshold or another predictor"

    def observe(self, agreement: float, accepted: float) -> bool:
        """Whether this switches speculation on or off."""
        before = self.on
        self.agreement = self._smooth(self.agreement, agreement)
        self.accepted = self._smooth(self.accepted, accepted)
        if not self._rule.always:
            agree, enough = (self._rule.off, self._too_few) if self.on else (self._rule.on, self._enough)
            self.on = (self._unbiased or self.agreement >= agree) and self.accepted >= enough
        self._probes += 1
        self._ever |= self.on
        return self.on != before

    def _smooth(self, before: float | None, value: float) -> float:
        return value if before is None else self.SMOOTHING * before + (1 - self.SMOOTHING) * value

    def state(self) -> dict[str, Any]:
        return {
            "on": self.on, "agreement": self.agreement, "accepted": self.accepted,
            "probes": self._probes, "ever": self._ever,
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        self.on, self.agreement, self.accepted = bool(state["on"]), state["agreement"], state["accepted"]
        self._probes, self._ever = int(state.get("probes", 0)), bool(state.get("ever", self.on))
