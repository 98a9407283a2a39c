"""What a comparison found: plain values with a JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from convoy.report.comparison_page import COMPARISON_FILE as COMPARISON_FILE
from convoy.report.comparison_page import notebook
from convoy.schedule.plan import columns
from convoy.training.history import EpochRecord

FORMAT = 1


@dataclass(slots=True)
class Outcome:
    """One run: a strategy (its label) with one seed. ``status``: "finished", "failed" or "unfinished". ``warnings``:
    what the run warned of, of each sort the first."""

    strategy: str
    seed: int
    status: str = "unfinished"
    error: str | None = None
    path: str | None = None
    epochs: list[EpochRecord] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def seconds(self) -> list[float]:
        """Seconds of training up to the end of each epoch."""
        total, reached = 0.0, []
        for record in self.epochs:
            total += record.seconds
            reached.append(total)
        return reached

    def best_accuracy(self) -> float | None:
        known = [r.validation_accuracy for r in self.epochs if r.validation_accuracy is not None]
        return max(known) if known else None

    def last_accuracy(self) -> float | None:
        return self.epochs[-1].validation_accuracy if self.epochs else None

    def seconds_to(self, target: float) -> float | None:
        """Seconds of training up to the end of the first epoch whose validation accuracy is at least ``target``."""
        for reached, record in zip(self.seconds(), self.epochs, strict=True):
            if record.validation_accuracy is not None and record.validation_accuracy >= target:
                return reached
        return None


@dataclass(frozen=True, slots=True)
class Turn:
    """One epoch's turn: ``place`` in its round's order, and how many cores others kept busy meanwhile."""

    seed: int
    round: int
    place: int
    strategy: str
    other_cores: float | None


@dataclass(slots=True)
class Comparison:
    """Strategies (label → fields) on the same work. ``budget``: ``{"epochs": n}`` or ``{"minutes": m}``. ``target``:
    the accuracy that was asked for; None to choose one that all reached. ``chance``: the accuracy of guessing, a share
    (1 / classes), if it is known."""

    title: str
    strategies: dict[str, dict[str, Any]]
    budget: dict[str, float]
    seeds: list[int]
    target: float | None = None
    outcomes: list[Outcome] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    chance: float | None = None

    def outcome(self, strategy: str, seed: int) -> Outcome:
        """The run of a strategy with a seed; made where there is none yet."""
        for outcome in self.outcomes:
            if outcome.strategy == strategy and outcome.seed == seed:
                return outcome
        self.outcomes.append(Outcome(strategy, seed))
        return self.outcomes[-1]

    def of(self, strategy: str) -> list[Outcome]:
        """The runs of a strategy that did not fail and have an epoch."""
        return [o for o in self.outcomes if o.strategy == strategy and o.status != "failed" and o.epochs]

    @property
    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.status == "failed"]

    @property
    def finished(self) -> bool:
        """Whether every run came to an end."""
        wanted = len(self.strategies) * len(self.seeds)
        return len([o for o in self.outcomes if o.status != "unfinished"]) == wanted

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values, what was found among them."""
        from convoy.comparison.findings import findings

        return {"format": FORMAT, **asdict(self), "findings": findings(self).to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Comparison:
        outcomes = [
            Outcome(**{**o, "epochs": [EpochRecord.from_dict(record) for record in o["epochs"]]})
            for o in values["outcomes"]
        ]
        plain = ("title", "strategies", "budget", "seeds", "target", "environment", "config")
        turns = [Turn(**turn) for turn in values["turns"]]
        return cls(**{k: values[k] for k in plain}, outcomes=outcomes, turns=turns, chance=values.get("chance"))

    def table(self) -> str:
        """A line per strategy, then the sentences and warnings."""
        from convoy.comparison.findings import findings

        found = findings(self)
        lines = [columns(found.head, [[*row] for row in found.rows]), "", *found.sentences]
        return "\n".join([*lines, *(f"warning: {warning}" for warning in found.warnings)])

    def __str__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        return notebook(self.to_dict())
