"""What happened. Progress, metrics, trace, report and tests read events and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

EventKind = Literal["run", "plan", "action", "decision", "step", "epoch", "nodes", "warning"]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    ``start`` and ``end`` are seconds since the run began; ``lane`` the worker (empty for the driver). ``data`` holds
    plain values only (numbers, strings, lists, mappings), by kind:

    - ``run``: name is ``begin``, ``end`` or ``interrupted``; data describe model, strategy, environment.
    - ``plan``: data are the plan as JSON-ready values.
    - ``action``: name is the action's label (``F1.2``), data have ``kind``, ``subject``, ``part``, ``reads`` and
      ``writes`` (name → version as *observed*, not as planned), ``bytes``.
    - ``decision``: name is the decision's name, data have ``cause`` and its content.
    - ``step``: one mini-batch is through; data have ``epoch``, ``loss``, ``correct``, ``samples``, ``lr``.
    - ``epoch``: data have ``epoch``, ``train_loss``, ``train_accuracy``, ``validation_loss``,
      ``validation_accuracy``, ``seconds``, ``samples_per_second``, ``busy`` (lane → share of the time).
    - ``nodes``: data have ``nodes``, a row for each: ``samples_per_second``, ``share`` of the samples, ``lag``,
      ``waited`` (share of its time), ``quality`` and counts.
    - ``warning``: data have ``message``.
    """

    kind: EventKind
    name: str
    start: float = 0.0
    end: float = 0.0
    lane: str = ""
    batch: int = -1
    data: Mapping[str, Any] = field(default_factory=dict)


Sink: TypeAlias = Callable[[Event], None]
"""Anything that takes events. Sinks are called from worker threads too and must not block for long."""
