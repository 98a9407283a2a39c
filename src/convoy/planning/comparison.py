"""Strategies side by side: plain data with a table, JSON and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar

from convoy.schedule.plan import Plan, columns, megabytes
from convoy.strategies.base import Strategy
from convoy.strategies.pipelined import Pipelined
from convoy.strategies.pipelined.clock import age


@dataclass(frozen=True)
class Row:
    """One way to train. ``step_seconds``: predicted time of a mini-batch. ``busy`` and ``worker_bytes``, by worker:
    share of the time, and activations, weights, gradients and optimizer state held. ``staleness`` of the stalest
    weights, in updates, on average. ``speculated``: share of the backward pass that is guessed. ``same_numbers``: what
    differs from plain training, in a few words; ``exact``: whether nothing does but last digits. ``options``: how to
    ask for it. ``note``: what the prediction assumes, and what else is to be known."""

    name: str
    options: str
    step_seconds: float
    busy: tuple[float, ...]
    worker_bytes: tuple[int, ...]
    staleness: float
    same_numbers: str
    own: bool = True  # one of convoy's strategies
    exact: bool = True
    speculated: float = 0.0
    note: str = ""

    @property
    def bytes(self) -> int:
        return sum(self.worker_bytes)


@dataclass(frozen=True)
class Refused:
    """A strategy that cannot be planned or used here, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Comparison(Plan):
    """What each strategy should bring for one model and batch, fastest first. ``sequential_seconds``: a step of plain
    training on all ``workers`` cores (or on one, should that be faster), ``one_worker_seconds`` on one."""

    strategy: ClassVar[str] = "comparison"

    model: str
    batch_size: int
    workers: int
    sequential_seconds: float
    one_worker_seconds: float
    rows: tuple[Row, ...]
    refused: tuple[Refused, ...] = ()
    advice: str = ""

    def speedup(self, row: Row) -> float:
        """Over sequential training on the same cores."""
        return self.sequential_seconds / row.step_seconds

    def table(self) -> str:
        head = (
            "strategy",
            "options",
            "ms a step",
            "× sequential",
            "× one core",
            "busy",
            "memory",
            "stale by",
            "numbers",
        )
        rows = [
            (
                row.name, row.options, f"{row.step_seconds * 1e3:.1f}", f"{self.speedup(row):.2f}",
                f"{self.one_worker_seconds / row.step_seconds:.2f}", _range(row.busy), megabytes(row.bytes),
                f"{row.staleness:g}", row.same_numbers,
            )
            for row in self.rows
        ]  # fmt: skip
        cores = f"{self.workers} core{'s' * (self.workers > 1)}"
        lines = [f"{self.model}, batch {self.batch_size}, {cores}: predicted, fastest first", columns(head, rows)]
        lines += [f"{row.name} {row.options}: {row.note}" for row in self.rows if row.note]
        lines += [f"not possible: {each.name}: {each.reason}" for each in self.refused]
        return "\n".join([*lines, f"advice: {self.advice}"])

    def csv_rows(self) -> list[dict[str, Any]]:
        return [
            {
                "strategy": row.name,
                "options": row.options,
                "step_seconds": row.step_seconds,
                "times_sequential": self.speedup(row),
                "times_one_core": self.one_worker_seconds / row.step_seconds,
                "busy": " ".join(f"{share:.3f}" for share in row.busy),
                "bytes": row.bytes,
                "worker_bytes": " ".join(map(str, row.worker_bytes)),
                "staleness": row.staleness,
                "speculated": row.speculated,
                "exact": row.exact,
                "numbers": row.same_numbers,
                "note": row.note,
            }
            for row in self.rows
        ]


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Rows with equal keys as comma-separated values, keys first."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().rstrip("\n")


def options_of(strategy: Strategy, usual: Strategy | None = None) -> str:
    """The fields in which it differs from the ``usual`` one (None: as by default), as options of the command line."""
    found: list[str] = []
    if not is_dataclass(strategy):
        return ""
    if usual is None:
        usual = type(strategy)()
        if isinstance(strategy, Pipelined) and strategy.stages == "auto":  # what is open there is not the default
            usual = Pipelined(stages="auto")
            found.append("--stages auto")
    for name in (field.name for field in fields(strategy)):
        value = getattr(strategy, name)
        if value != getattr(usual, name) and value is not None:
            several = value if isinstance(value, (tuple, list)) else [value]
            text = ",".join(f"{one:g}" if isinstance(one, float) else str(one) for one in several)
            found.append(f"--{name.replace('_', '-')} {text}")
    return " ".join(found)


def _range(shares: Sequence[float]) -> str:
    low, high = (f"{value:.0%}" for value in (min(shares), max(shares)))
    return low if low == high else f"{low}–{high}"


WORTHWHILE = 1.1
"""Times sequential training from which on another strategy is advised."""


def advise(rows: Sequence[Row], sequential_seconds: float) -> str:
    """One sentence: what to take. ``rows`` fastest first, the sequential one among them.

    What speculates is not advised where anything else gains: in our runs a pipeline was as accurate in as little time,
    and what speculation saves depends on data that no measurement knows (docs/lab/speculative.md)."""
    sober = [row for row in rows if not row.speculated]
    if sober and sequential_seconds / sober[0].step_seconds >= WORTHWHILE:
        rows = sober
    fastest = rows[0]
    own = next((row for row in rows if row.own), fastest)
    gain = sequential_seconds / fastest.step_seconds
    if gain < WORTHWHILE:
        much = f"the fastest alternative gains {gain - 1:.0%}" if gain > 1.0 else "nothing here is faster"
        return f"train sequentially: {much}"
    if not fastest.own and fastest.step_seconds < 0.95 * own.step_seconds:
        times = own.step_seconds / fastest.step_seconds
        return f"use DDP: predicted {times:.2f} times as fast as {own.name} {own.options}".rstrip()
    close = [r for r in rows if r.own and r.step_seconds <= 1.05 * own.step_seconds]
    best = min(close, key=lambda row: (not row.exact, row.staleness, row.speculated, row.step_seconds))
    words = f"train with --strategy {best.name} {best.options}".rstrip()
    text = f"{words}: {sequential_seconds / best.step_seconds:.2f} times sequential training"
    if best.staleness:
        unit = "version" if best.name == "bilayered" else "update"
        text += f", at weights up to {age(best.staleness, unit)}"
    if best.name == "bilayered":
        text += "; replicas that are merged may need more epochs"
    elif not best.staleness and not best.exact:
        text += f", with {best.same_numbers}"
    if best.speculated:
        text += "; compare its accuracy after as much time with exact training's, which was ahead in our runs"
    ddp = next((row for row in rows if not row.own), None)
    if ddp is not None and best.staleness and ddp.step_seconds < 1.05 * best.step_seconds:
        text += "; DDP should be as fast without stale weights"
    return text
