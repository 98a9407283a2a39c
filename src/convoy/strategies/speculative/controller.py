"""When to speculate: after an exact warm-up, while the gradients that it gives agree with the exact ones.

Every ``every``-th mini-batch after the warm-up is a *probe*: it trains exactly, and the gradient that speculation would
have given is computed beside it. Their cosine, smoothed, switches speculation on and off, with hysteresis; so does the
share of accepted samples, below which speculating only costs time. Wrong gradients can take a network apart within a
dozen mini-batches: right after speculation began the next probe comes after one speculated mini-batch, then after
twice as many each time, and one probe that disagrees ends it. So does a loss that rises, and each time it does,
speculation rests for twice as long. Decisions from data: a replay comes to the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, isfinite, sqrt
from typing import Any, Literal

from convoy.errors import OptionError

Mode = Literal["exact", "probe", "speculate"]

_FIRST_GAP = 2  # from the probe that lets speculation begin to the next
_HINT = (
    "write auto, auto:ON,OFF,EVERY (such as auto:0.9,0.8,32), always (no probes) or always:EVERY (such as always:32)"
)


@dataclass(frozen=True)
class Rule:
    """On at an agreement of ``on`` or more, off below ``off``. ``always``: speculate after the warm-up whatever the
    probes say (they are made all the same, so that it is seen); ``every`` 0, which only plain "always" means: no
    probes."""

    on: float = 0.9
    off: float = 0.8
    every: int = 32
    always: bool = False

    @classmethod
    def parse(cls, text: str) -> Rule:
        """``auto``, ``auto:0.9,0.8,32``, ``always`` or ``always:32`` (a probe every so many mini-batches)."""
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
    MEMORY, RISE, SPREAD = 512, 0.1, 6.0
    """Samples over which the loss is smoothed; by which share of its lowest since speculation began, and by how many
    of its standard errors besides, it may rise."""
    PATIENCE = 4
    """After so many probes without speculation, that is told."""

    def __init__(self, rule: Rule, warmup: int, *, unbiased: bool = False, skips: bool = False) -> None:
        self._rule, self._warmup, self.unbiased = rule, warmup, unbiased
        self._enough, self._too_few = (0.0, 0.0) if skips else (self.ENOUGH, self.TOO_FEW)
        self.on = rule.always
        self.agreement: float | None = None
        """Smoothed cosine of speculated and exact gradients; None before the first probe."""
        self.accepted: float | None = None
        """Smoothed share of the samples that probes would have accepted."""
        self._probes, self._ever = 0, self.on
        self._gap, self._next = self._rule.every, warmup
        """Mini-batches from the last probe to the next one, and its number."""
        self.loss: float | None = None
        """Smoothed."""
        self.lowest: float | None = None
        """Since speculation began; None while it does not go on."""
        self._bound = 0.0  # what the loss may rise to
        self._spread = self._weight = 0.0  # squares of what mini-batches are off by, and weights, both smoothed
        self._seen = self._rises = 0  # samples; how often the loss rose
        self._rest = 0  # no probe before this mini-batch lets speculation begin

    def mode(self, batch: int) -> Mode:
        if batch < self._warmup:
            return "exact"
        if self._rule.every and batch >= self._next:
            self._next = batch  # a strategy before this one may have trained the mini-batches until here
            return "probe"
        return "speculate" if self.on else "exact"

    def speculated(self, batch: int) -> bool:
        """Whether some mini-batch before ``batch`` may have been trained by speculated signals."""
        return self._ever and batch > self._warmup

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
            least = min(self.agreement, agreement) if self.on else self.agreement
            rested = self._next >= self._rest
            self.on = (self.unbiased or least >= agree) and self.accepted >= enough and rested
        self._probes += 1
        every = self._rule.every
        if self._rule.always or self.unbiased or not self.on:
            self._gap = every
        else:
            self._gap = min(every, 2 * self._gap if before else _FIRST_GAP)
        self._next += self._gap
        self._ever |= self.on
        if self.on != before:
            self.lowest = None
        return self.on != before

    def watch(self, mode: Mode, loss: float, samples: int) -> bool:
        """Take the loss of a mini-batch that was trained in ``mode``. Whether it ends speculation, having risen."""
        keep = exp(-samples / self.MEMORY)
        if isfinite(loss):
            off = 0.0 if self.loss is None else loss - self.loss
            self.loss = loss - keep * off
            slow = exp(-samples / (16 * self.MEMORY))  # so that a lucky stretch does not look like calm
            self._spread = slow * self._spread + (1 - slow) * off * off
            self._weight = slow * self._weight + (1 - slow)
        self._seen += samples
        if self._rule.always or mode != "speculate" or self._seen < 2 * self.MEMORY:  # few samples say nothing
            return False
        assert self.loss is not None
        if self.lowest is None or self.loss < self.lowest:
            # The error as it is now: what rises also spreads.
            error = sqrt(self._spread / self._weight * (1 - keep) / (1 + keep))
            self.lowest, self._bound = self.loss, self.loss + self.RISE * abs(self.loss) + self.SPREAD * error
        if isfinite(loss) and self.loss <= self._bound:
            return False
        self.on, self.lowest = False, None
        self._rises += 1
        self._rest = self._next + self._rule.every * 2**self._rises
        return True

    def rests(self, batch: int) -> int:
        """Mini-batches after ``batch`` in which speculation does not begin again."""
        return max(0, self._rest - batch)

    def _smooth(self, before: float | None, value: float) -> float:
        return value if before is None else self.SMOOTHING * before + (1 - self.SMOOTHING) * value

    def state(self) -> dict[str, Any]:
        return {
            "on": self.on, "agreement": self.agreement, "accepted": self.accepted,
            "probes": self._probes, "ever": self._ever, "gap": self._gap, "next": self._next,
            "loss": self.loss, "lowest": self.lowest, "seen": self._seen, "rises": self._rises, "rest": self._rest,
            "bound": self._bound, "spread": self._spread, "weight": self._weight,
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        self.on, self.agreement, self.accepted = bool(state["on"]), state["agreement"], state["accepted"]
        self._probes, self._ever = int(state.get("probes", 0)), bool(state.get("ever", self.on))
        self._gap, self._next = int(state.get("gap", self._rule.every)), int(state.get("next", self._warmup))
        self.loss, self.lowest = state.get("loss"), state.get("lowest")
        self._bound, self._spread, self._weight = (float(state.get(key, 0.0)) for key in ("bound", "spread", "weight"))
        self._seen, self._rises, self._rest = (int(state.get(key, 0)) for key in ("seen", "rises", "rest"))
