"""``Concurrent`` bound to a model: each mini-batch as CONV and non-CONV tasks on two lanes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim import Optimizer

from convoy.engines.engine import Disturb, Engine, EngineOptions
from convoy.engines.inline import InlineEngine
from convoy.engines.program import Program, Store
from convoy.engines.streams import Cuda, Device, StreamsEngine
from convoy.engines.threads import ThreadsEngine
from convoy.errors import OptionError
from convoy.events.event import Sink
from convoy.strategies.base import Loss, Settings
from convoy.strategies.concurrent.build import plan_for
from convoy.strategies.concurrent.plan import ConcurrentPlan
from convoy.strategies.concurrent.schedule import CONV, NONCONV
from convoy.strategies.tasks.build import Built
from convoy.strategies.tasks.recurring_step import RecurringStep
from convoy.strategies.tasks.settled_step import allowed_threads


class ConcurrentStep(RecurringStep):
    """Implements ``Step``. Nothing is in flight between two mini-batches. ``accelerator``: in place of CUDA."""

    strategy: ClassVar[str] = "concurrent"

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: Optimizer,
        settings: Settings,
        sink: Sink | None,
        *,
        groups: int | None = None,
        placement: str = "planned",
        engine: str = "auto",
        accelerator: Device | None = None,
        disturb: Disturb | None = None,
        keep_schedule: bool = False,
    ) -> None:
        super().__init__(model, loss, optimizer, settings, sink, disturb=disturb, keep_schedule=keep_schedule)
        self._groups, self._placement, self._accelerator = groups, placement, accelerator
        cuda = torch.device(settings.device).type == "cuda"
        if engine == "streams" and not cuda and accelerator is None:
            raise OptionError(
                f"engine 'streams' is for CUDA, but device is {settings.device!r}", hint="use engine='threads'"
            )
        if engine == "threads" and cuda:
            raise OptionError("engine 'threads' is for the CPU, but device is CUDA", hint="use engine='streams'")
        if engine == "auto":
            engine = "streams" if cuda else "inline" if allowed_threads(settings) == 1 else "threads"
        self._kind = engine

    @property
    def workers(self) -> int:
        return len(self._lanes)

    @property
    def _lanes(self) -> Mapping[str, int]:
        """Half of the threads for each lane; with an odd one for CONV."""
        threads = 1 if self._kind == "streams" else allowed_threads(self._settings)
        return {CONV: max(1, threads - threads // 2), NONCONV: max(1, threads // 2)}

    def _tiles_for(self, samples: int) -> int:
        return 1  # channels do not depend on the batch

    def _build(self, tiles: int, x: Any, y: Any) -> Built:
        plan, program = plan_for(
            self._bound,
            x,
            y,
            count=self._groups,
            placement=self._placement,
            threads=(self._lanes[CONV], self._lanes[NONCONV]),
            measuring=self._kind != "inline" or self._groups is None or self._settings.forecast,
        )
        self._groups = plan.groups  # kept when the model's mode changes
        return Built(program, plan)

    def _make_engine(self, program: Program, store: Store, options: EngineOptions) -> Engine:
        if self._kind == "streams":
            index = torch.device(self._settings.device).index or 0
            return StreamsEngine(
                program, store, options, self._accelerator or Cuda(dict.fromkeys(options.lanes, index))
            )
        return (InlineEngine if self._kind == "inline" else ThreadsEngine)(program, store, options)

    def state(self) -> Mapping[str, Any]:
        """The groups too: measured again they might come out otherwise, and with them the last digits."""
        return {**super().state(), "groups": self._groups}

    def restore(self, state: Mapping[str, Any]) -> None:
        super().restore(state)
        if self._groups is None:
            self._groups = state.get("groups")

    def plan(self) -> ConcurrentPlan | None:
        plan = super().plan()
        assert plan is None or isinstance(plan, ConcurrentPlan)
        return plan
