"""A bound pipeline whose stages are actors.

The weights live in the actors while batches are in flight. A drain brings them, the estimates and the optimizer's
state back into the user's own objects; what the user changes there before the next batch goes out again with it.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from convoy.engines.engine import Engine, EngineOptions
from convoy.engines.program import Store
from convoy.engines.ray.engine import RayEngine
from convoy.engines.ray.extra import ray_module
from convoy.engines.ray.session import Session, check_address, connect
from convoy.errors import ModelError, OptionError
from convoy.graph.structure import Structure
from convoy.schedule.action import Ref
from convoy.strategies.batch import arguments
from convoy.strategies.pipelined.program import Fed
from convoy.strategies.pipelined.remote.codec import encode_fed
from convoy.strategies.pipelined.remote.modules import modules_of
from convoy.strategies.pipelined.remote.numbers import Numbers
from convoy.strategies.pipelined.remote.stage import StageRecipe
from convoy.strategies.pipelined.remote.state import fingerprint, put_states, stage_state
from convoy.strategies.pipelined.result import PipelinedResult
from convoy.strategies.pipelined.step import PipelinedStep

if TYPE_CHECKING:
    from convoy.schedule.schedule import Entry


class RemoteStep(PipelinedStep):
    """Implements ``Step`` with an actor a stage."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._session: Session | None = None
        self._example: Any = None
        self._known: list[bytes] = []  # fingerprint of the state that each actor has
        if torch.device(self._settings.device).type != "cpu":
            raise OptionError(
                f"engine 'ray' runs on processors, and device is {self._settings.device!r}",
                hint="use engine='streams' for several devices of one machine, or device='cpu'",
            )
        ray = ray_module()
        if self._strategy.address is not None and not ray.is_initialized():
            check_address(self._strategy.address, self._strategy.insecure)

    def __call__(self, x: Any, y: Any) -> PipelinedResult | None:
        if self._engine is None:
            self._example = x
        elif self._begin and not self._closed:
            self._push()
        return super().__call__(x, y)

    def close(self) -> None:
        super().close()
        if self._session is not None:
            self._session.close()

    # --- inside ----------------------------------------------------------------------------------------------

    def _make_engine(self, options: EngineOptions, devices: Sequence[torch.device | None]) -> Engine:
        strategy, planned = self._strategy, self._planned
        if self._session is None:
            cores = sum(options.lanes.values())
            self._session = connect(strategy.address, insecure=strategy.insecure, cpus=cores)
            weakref.finalize(self, self._session.close)
        example, _ = self._prepare(self._example, None)
        plan = planned.plan
        recipe = StageRecipe(
            model=self._model,
            loss=self._loss,
            optimizer=type(self._optimizer),
            attributes=StageRecipe.attributes_of(self._optimizer),
            example=arguments(example),
            nodes=tuple(node.name for node in planned.graph.nodes),
            cuts=tuple(planned.cuts),
            delays=plan.delays,
            accumulate=plan.accumulate,
            correction=strategy.correction,
            settings=self._settings,
            total=self._total,
            began=self._began,
            numbers=Numbers.here(),
        )
        others = (self._loss, self._optimizer, *([self._disturb] if self._disturb is not None else []))
        last = self._clock.stages
        inputs = {f"i{i}": (set(planned.inputs) & set(s.inputs), i == last) for i, s in enumerate(planned.segments, 1)}

        def encode(ref: Ref, fed: Fed) -> Any:
            return encode_fed(fed, *inputs[ref.name])

        engine = RayEngine(
            self._program,
            Store(),
            options,
            session=self._session,
            recipe=recipe,
            own={self._clock.lane("F", i): {"stage": i} for i in range(1, last + 1)},
            modules=modules_of(self._model, *others),
            routes=self._routes(),
            encode=encode,
            on_result=self._came(planned.graph.output),
        )
        self._known = [fingerprint(stage_state(s, self._optimizer)) for s in planned.segments]
        return engine

    def _routes(self) -> dict[str, list[str]]:
        lane = {i: self._clock.lane("F", i) for i in range(1, self._clock.stages + 1)}
        routes = {f"i{stage}": [lane[stage]] for stage in self._program.fed}
        for producer, consumer in self._program.links:
            routes[f"x{producer}>{consumer}"] = [lane[consumer]]
            routes[f"g{consumer}>{producer}"] = [lane[producer]]
        return routes

    def _came(self, structure: Structure | None) -> Any:
        """What to do with a result of the last stage. Holds the batches, not the step."""
        batches = self._program.batches
        leaves = 1 if structure is None else sum(1 for _ in structure.paths())

        def came(batch: int, part: int, result: Any) -> None:
            output = result["output"]
            if len(output) != leaves:
                raise ModelError(
                    "the model returns something besides tensors, which does not come back from an actor",
                    hint="return tensors only, or use engine='threads'",
                )
            batches[batch].losses.append(result["loss"])
            batches[batch].outputs.append(output[0] if structure is None else structure.rebuild(output))

        return came

    def _submit(self, entries: list[Entry]) -> None:
        engine = self._engine
        assert isinstance(engine, RayEngine)
        for number in dict.fromkeys(action.batch for _, action in entries if action.kind == "E"):
            engine.announce({"batch": number, "hyper": self._program.batches[number].hyper})
        super()._submit(entries)

    def _rebalance(self) -> None:
        """Right after a drain: first of all the state comes home."""
        self._pull()
        super()._rebalance()

    def _lanes(self) -> list[str]:
        return [self._clock.lane("F", i) for i in range(1, self._clock.stages + 1)]

    def _pull(self) -> None:
        engine, segments = self._engine, self._planned.segments
        assert isinstance(engine, RayEngine)
        answers = engine.ask("state", dict.fromkeys(self._lanes()))
        put_states(segments, self._optimizer, [answers[lane] for lane in self._lanes()])
        self._known = [fingerprint(stage_state(segment, self._optimizer)) for segment in segments]

    def _push(self) -> None:
        """Send what was changed since it came home: by a callback, by ``load_state_dict``, by ``eval()`` ..."""
        engine = self._engine
        assert isinstance(engine, RayEngine)
        states = [stage_state(segment, self._optimizer) for segment in self._planned.segments]
        marks = [fingerprint(state) for state in states]
        changed = {
            lane: state
            for lane, state, mark, known in zip(self._lanes(), states, marks, self._known, strict=True)
            if mark != known
        }
        if changed:
            engine.ask("load", changed)
        self._known = marks
