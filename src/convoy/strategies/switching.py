"""When a hybrid goes over to its second strategy: the rule as the user writes it, and a state machine that hears of
epochs and says before which mini-batch the switch falls. Plain Python; it knows of no strategy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from convoy.errors import OptionError

PATIENCE = 3
_EXAMPLES = "give switch=5 (after 5 epochs), 0.5 (half of the run), 'stall' or 'stall:3', or 'batch:400'"


@dataclass(frozen=True, slots=True)
class SwitchRule:
    """``epoch``: after that many epochs. ``share``: after that share of the run. ``stall``: when validation has not
    improved for that many epochs. ``batch``: before that mini-batch of the run, counted from 0."""

    kind: Literal["epoch", "share", "stall", "batch"]
    number: Fraction

    @classmethod
    def parse(cls, value: int | float | str) -> SwitchRule:
        """Raises OptionError for what is no rule."""
        if isinstance(value, str):
            return cls._parse_text(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise OptionError(f"switch is {value!r}, which is no rule", hint=_EXAMPLES)
        if isinstance(value, int):
            if value < 1:
                raise OptionError(
                    f"switch is {value}, so the first strategy would never train",
                    hint="give the number of epochs that it shall train, or only the second strategy",
                )
            return cls("epoch", Fraction(value))
        if not 0 < value < 1:
            raise OptionError(
                f"switch is {value}, and a share of the run lies between 0 and 1",
                hint="write a number of epochs without a point, such as 5",
            )
        return cls("share", Fraction(repr(value)))  # what was written: 0.1 is a tenth

    @classmethod
    def _parse_text(cls, text: str) -> SwitchRule:
        word, colon, number = text.partition(":")
        if word == "stall" and not colon:
            return cls("stall", Fraction(PATIENCE))
        if word in ("stall", "batch") and number.isdecimal() and int(number) >= 1:
            return cls("stall" if word == "stall" else "batch", Fraction(int(number)))
        raise OptionError(f"switch is {text!r}, which is no rule", hint=_EXAMPLES)

    @property
    def cause(self) -> Literal["user", "data"]:
        """A stall is read off the data; the others were fixed by the user."""
        return "data" if self.kind == "stall" else "user"


@dataclass(slots=True)
class Stall:
    """Epochs since validation was best: by accuracy where it is known, else by loss."""

    best: float | None = None
    waited: int = 0

    def update(self, accuracy: float | None, loss: float | None) -> None:
        """Take in an epoch's validation. Raises OptionError where there was none."""
        if accuracy is None and loss is None:
            raise OptionError(
                "switch='stall' waits for validation to stop improving, but the epoch ended without one",
                hint="pass validation data to fit, or call end_epoch(validation_accuracy=...) in an own loop",
            )
        value = accuracy if accuracy is not None else -float(loss or 0.0)
        if not math.isnan(value) and (self.best is None or value > self.best):
            self.best, self.waited = value, 0
        else:
            self.waited += 1


class Switching:
    """The state machine. ``at`` is the mini-batch before which the switch falls, once that is known."""

    def __init__(self, rule: SwitchRule) -> None:
        self.rule = rule
        self.at: int | None = int(rule.number) if rule.kind == "batch" else None
        self._epoch: int | None = None
        self._first = 0  # the first mini-batch of the epoch
        self._stall = Stall()
        self._begun = False  # whether an epoch began, or was resumed, here
        self._last = False  # whether the epoch that goes on is the run's last one
        self._warned = False

    @property
    def needs_epochs(self) -> bool:
        """Whether nobody has said yet that an epoch begins, though the rule depends on it."""
        return self.rule.kind != "batch" and self._epoch is None

    def due(self, batch: int) -> bool:
        """Whether the switch falls before mini-batch ``batch``, or should have fallen already."""
        return self.at is not None and batch >= self.at

    def begin_epoch(self, batch: int, epoch: int, epochs: int, batches: int | None) -> str | None:
        """Epoch ``epoch`` (from 0) of ``epochs`` begins or, when it is the one that went on before, is resumed.
        ``batch`` is the run's next mini-batch, ``batches`` what the epoch has. Returns a warning, where the run will
        end without a switch."""
        begins = epoch != self._epoch
        if begins:
            self._epoch, self._first = epoch, batch
        self._last = epoch == epochs - 1
        kind, number = self.rule.kind, self.rule.number
        if kind == "epoch":
            self.at = self._first if epoch >= number else None
        elif kind == "stall":
            self.at = self._first if self._stall.waited >= number else None
        message = self._place_share(epoch, epochs, batches, begins) if kind == "share" else None
        if not self._begun:
            message = message or self._too_short(epoch, epochs, batches)
        self._begun = True
        self._warned = self._warned or message is not None
        return message

    def _too_short(self, epoch: int, epochs: int, batches: int | None) -> str | None:
        """Why a run of ``epochs`` that begins, or is resumed, in ``epoch`` ends without a switch; None where it need
        not."""
        kind, number = self.rule.kind, int(self.rule.number)
        length = f"the run has {_count(epochs, 'epoch')}"
        if kind == "epoch" and number >= epochs:
            return f"{length}, so the switch after {number} will not come"
        if kind == "batch" and batches is not None:
            last = self._first + (epochs - epoch) * batches
            if number >= last:
                return (
                    f"the run has {_count(last, 'mini-batch', 'mini-batches')}, so the switch before mini-batch "
                    f"{number}, counted from 0, will not come"
                )
        if kind == "stall" and self.at is None:
            # The first epoch sets what later ones have to exceed, and the switch falls before another one.
            needed = epoch + int(self._stall.best is None) + max(number - self._stall.waited, 0) + 1
            if needed > epochs:
                stall = f"a stall of {_count(number, 'epoch')}"
                return f"{length}, and a switch after {stall} needs {needed} at least, so it will not come"
        return None

    def _place_share(self, epoch: int, epochs: int, batches: int | None, begins: bool) -> str | None:
        left = self.rule.number * epochs - epoch  # in epochs
        self.at = None
        if left <= 0:
            self.at = self._first
        elif left < 1 and batches is not None:
            into = math.ceil(left * batches)
            if epoch == epochs - 1:  # each strategy gets a mini-batch at least
                into = max(min(into, batches - 1), int(self._first == 0))
            self.at = self._first + into
        elif left < 1 and epoch == epochs - 1 and begins:
            return (
                f"the switch after {float(self.rule.number):g} of the run falls into its last epoch, whose length "
                "the loader does not know, so it will not come"
            )
        return None

    def end_epoch(self, accuracy: float | None, loss: float | None) -> str | None:
        """The epoch is over. Returns a sentence where it was the last one, and a stall did not come that was not known
        before to be out of reach."""
        if self.rule.kind != "stall":
            return None
        self._stall.update(accuracy, loss)
        if not self._last or self._warned:
            return None
        waited, number = self._stall.waited, int(self.rule.number)
        if waited >= number:
            return "the run ends without its switch: validation stalled only with the last epoch"
        return (
            f"the run ends without its switch: validation has not improved for {_count(waited, 'epoch')}, and the "
            f"switch waits for {number}"
        )

    def reason(self) -> dict[str, Any]:
        """What a decision to switch says about why."""
        said: dict[str, Any] = {"rule": self.rule.kind}
        said["number"] = float(self.rule.number) if self.rule.kind == "share" else int(self.rule.number)
        if self._epoch is not None:
            said["epoch"] = self._epoch + 1
        if self.rule.kind == "stall":
            said["waited"] = self._stall.waited
        return said

    def state(self) -> dict[str, Any]:
        return {
            "epoch": self._epoch,
            "first": self._first,
            "best": self._stall.best,
            "waited": self._stall.waited,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._epoch, self._first = state["epoch"], int(state["first"])
        self._stall = Stall(state["best"], int(state["waited"]))


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
