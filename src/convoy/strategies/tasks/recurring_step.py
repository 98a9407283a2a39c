"""What steps have in common whose mini-batches are the same actions every time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

from convoy.engines.engine import Engine, EngineOptions
from convoy.engines.program import Program, Store
from convoy.events.event import Event
from convoy.graph.graph import Graph
from convoy.schedule.plan import Plan
from convoy.strategies.batch import arguments, batch_size
from convoy.strategies.pipelined.optimizer import snapshot
from convoy.strategies.sequential import SequentialResult
from convoy.strategies.tasks.build import Bound, Built
from convoy.strategies.tasks.ops import Frame
from convoy.strategies.tasks.settled_step import SettledStep


class RecurringStep(SettledStep):
    """Implements ``Step``. A subclass says what is built for a batch, and what runs it."""

    strategy: ClassVar[str]

    _plan: Plan | None = None
    _foreseen: Plan | None = None

    @cached_property
    def _built(self) -> dict[int, Built]:
        """Tiles of the batch → what runs it."""
        return {}

    # --- what a subclass says ------------------------------------------------------------------------------

    @property
    @abstractmethod
    def workers(self) -> int:
        """Threads that share a mini-batch."""

    @property
    @abstractmethod
    def _lanes(self) -> Mapping[str, int]:
        """Lane → its intra-op threads."""

    @abstractmethod
    def _tiles_for(self, samples: int) -> int:
        """Into how many tiles a mini-batch is cut."""

    @abstractmethod
    def _build(self, tiles: int, x: Any, y: Any) -> Built:
        """What runs mini-batches of so many tiles. ``x`` and ``y``: the first of them."""

    @abstractmethod
    def _make_engine(self, program: Program, store: Store, options: EngineOptions) -> Engine: ...

    # --- Step ----------------------------------------------------------------------------------------------

    def __call__(self, x: Any, y: Any) -> SequentialResult:
        x, y = self._batch_here(x, y)
        graph = self._captured(x)
        built = self._prepare(x, y)
        frame = Frame(self._batch, [], graph.bind(*arguments(x)), y, snapshot(self._optimizer), batch_size(x))
        self._carry_out(built, frame)
        assert frame.loss is not None
        return SequentialResult(frame.batch, frame.loss, frame.output, y)

    def foresee(self, x: Any, y: Any) -> None:
        """Plan on this mini-batch what will be trained later, which raises what can be known by now. Trains nothing,
        and keeps no program: the model may have changed by then."""
        x, y = self._batch_here(x, y)
        self._bound = self._bound_to(self._captured(x))
        self._foreseen = self._build(self._tiles_for(batch_size(x)), x, y).plan
        self._graph = None

    def plan(self) -> Plan | None:
        return self._foreseen if self._plan is None else self._plan

    # --- inside --------------------------------------------------------------------------------------------

    def _prepare(self, x: Any, y: Any) -> Built:
        """What runs a batch of this size, with the model in its present mode."""
        if self._has_changed():
            self._stop()
            self._bound = self._bound_to(self._captured(x))
        tiles = self._tiles_for(batch_size(x))
        if tiles not in self._built:
            self._built[tiles] = self._build(tiles, x, y)
            if self._engine is None:
                self._begin(self._built[tiles])
        return self._built[tiles]

    def _bound_to(self, graph: Graph) -> Bound:
        return Bound.of(graph, self._model, self._loss, self._optimizer, self._settings, self.workers)

    def _begin(self, built: Built) -> None:
        """The engine, and what the plan says, for a model in its present mode."""
        self._open(self._make_engine, self._lanes, built.program)
        if self._plan is None and self._sink is not None:
            self._sink(Event("plan", self.strategy, data=built.plan.to_dict()))
        self._plan = built.plan

    def _stop(self) -> None:
        self._built.clear()
        super()._stop()
