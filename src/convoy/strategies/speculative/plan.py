"""What speculative training decided beforehand and predicts: plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from convoy.schedule.plan import Plan, columns, megabytes


@dataclass(frozen=True)
class Saving:
    """``share`` of the time of one engine that two engines save at an ``acceptance``."""

    acceptance: float
    share: float


@dataclass(frozen=True)
class SpeculativePlan(Plan):
    """``cut``: where speculation begins (cut form), or the node from which downwards true outcomes are used (faithful
    form; empty where nothing is remembered). ``threshold``: None where chance alone accepts. ``speculated_share``: of
    the backward pass's operations. ``actions``: of a mini-batch that is speculated. ``memory_bytes``: what is
    remembered at most. ``savings`` are predicted from operations alone, for equal engines; ``exact_saving`` is that
    of exact training on the same two engines, whose weight gradients wait for nobody."""

    strategy: ClassVar[str] = "speculative"

    model: str
    batch_size: int
    form: str
    cut: str
    speculated_share: float
    predictor: str
    threshold: float | None
    warmup: int
    controller: str
    engines: int
    threads_per_engine: int
    actions: int
    memory_bytes: int
    memory_limit_bytes: int
    savings: tuple[Saving, ...]
    exact_saving: float
    remembered: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def table(self) -> str:
        where = f"cut before {self.cut}" if self.form == "cut" else f"true outcomes from {self.cut} downwards"
        where = where if self.cut else "nothing remembered"
        test = "no threshold" if self.threshold is None else f"threshold {self.threshold:g}"
        lines = [
            f"{self.model}, batch {self.batch_size}: {self.form} form, {where}, "
            f"{self.speculated_share:.0%} of the backward pass speculated",
            f"{self.engines} engine{'s' * (self.engines > 1)} of {self.threads_per_engine} "
            f"thread{'s' * (self.threads_per_engine > 1)}, {self.actions} actions a mini-batch",
            f"predictor {self.predictor}, {test}, warm-up {self.warmup} mini-batches, controller {self.controller}",
            f"remembers {megabytes(self.memory_bytes)} at most, of {megabytes(self.memory_limit_bytes)} allowed",
            columns(
                ("accepted", "predicted time saved"),
                [(f"{s.acceptance:.0%}", f"{s.share:.0%}") for s in self.savings],
            ),
            f"exact training on the same engines: {self.exact_saving:.0%} saved",
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])
