"""``Sequential(inner="tasks")`` bound to a model: each mini-batch as a task graph on a pool of workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim import Optimizer

from convoy.engines.engine import Disturb, Engine, EngineOptions
from convoy.engines.inline import InlineEngine
from convoy.engines.pool import POOL, PoolEngine
from convoy.engines.program import Program, Store
from convoy.errors import OptionError
from convoy.events.event import Sink
from convoy.strategies.base import Loss, Settings
from convoy.strategies.tasks.build import Built, build
from convoy.strategies.tasks.recurring_step import RecurringStep
from convoy.strategies.tasks.settled_step import allowed_threads


class TaskStep(RecurringStep):
    """Implements ``Step``. Nothing is in flight between two mini-batches.

    ``engine``: "pool", "inline" (one thread, program order: the oracle) or None for what suits the threads. ``tiles``:
    into how many a mini-batch is cut, None for what suits the model.
    """

    strategy: ClassVar[str] = "sequential"

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: Optimizer,
        settings: Settings,
        sink: Sink | None,
        *,
        engine: str | None = None,
        tiles: int | None = None,
        disturb: Disturb | None = None,
        keep_schedule: bool = False,
    ) -> None:
        super().__init__(model, loss, optimizer, settings, sink, disturb=disturb, keep_schedule=keep_schedule)
        if torch.device(settings.device).type != "cpu":
            raise OptionError(
                f"inner='tasks' shares a step among the cores of a CPU, but device is {settings.device!r}",
                hint="leave inner out on an accelerator",
            )
        self._kind, self._tiles = engine, tiles

    @property
    def workers(self) -> int:
        return allowed_threads(self._settings)

    @property
    def _inline(self) -> bool:
        return self._kind == "inline" or (self._kind is None and self.workers == 1)

    @property
    def _lanes(self) -> Mapping[str, int]:
        return {POOL: 1} if self._inline else {f"worker {i + 1}": 1 for i in range(self.workers)}

    def _tiles_for(self, samples: int) -> int:
        return self._bound.tiles_for(samples, self._tiles)

    def _build(self, tiles: int, x: Any, y: Any) -> Built:
        return build(self._bound, tiles)

    def _make_engine(self, program: Program, store: Store, options: EngineOptions) -> Engine:
        return (InlineEngine if self._inline else PoolEngine)(program, store, options)
