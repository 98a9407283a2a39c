"""A mini-batch on its way, with what its operations found out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from convoy.errors import InternalError
from convoy.strategies.tasks.ops import Frame


@dataclass(slots=True)
class NotedFrame(Frame):
    """``notes``: written by operations, each under a key of its own; read when the mini-batch is through."""

    notes: dict[str, Any] = field(default_factory=dict)


def notes(frame: Frame) -> dict[str, Any]:
    if not isinstance(frame, NotedFrame):
        raise InternalError("an operation of speculation ran in another strategy's step")
    return frame.notes
