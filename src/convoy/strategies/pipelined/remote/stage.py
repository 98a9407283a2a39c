"""A stage in an actor: made from a recipe that the driver sent, with its own copy of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from convoy.engines.ray.failure import unexpected
from convoy.errors import ModelError
from convoy.graph.capture import capture
from convoy.graph.split import Segment, split
from convoy.graph.structure import flatten, is_tensor
from convoy.schedule.action import Action, Ref
from convoy.strategies.base import Loss, Settings
from convoy.strategies.pipelined.corrections import Corrections
from convoy.strategies.pipelined.optimizer import StageOptimizer
from convoy.strategies.pipelined.program import Batch, PipelineProgram, Stage
from convoy.strategies.pipelined.remote.codec import called, decode, encode
from convoy.strategies.pipelined.remote.numbers import Numbers
from convoy.strategies.pipelined.remote.state import put_states, stage_state
from convoy.strategies.pipelined.weights import Weights, policy
from convoy.strategies.precision import autocast_of


@dataclass(frozen=True)
class StageRecipe:
    """What all stages are made from. Travels once, by Ray's serialiser; every actor then keeps its own stage only.

    ``example``: positional and keyword arguments of the model for one batch, for capture. ``cuts``: positions in the
    graph, whose nodes are ``nodes``. ``delays`` in parts. ``total``: updates of the whole run, where that is known.
    ``began``: the mini-batch of the run with which the pipeline began.
    """

    model: nn.Module
    loss: Loss
    optimizer: type[Optimizer]
    attributes: Mapping[str, Any]
    example: tuple[tuple[Any, ...], dict[str, Any]]
    nodes: tuple[str, ...]
    cuts: tuple[int, ...]
    delays: tuple[int, ...]
    accumulate: int
    correction: str | None
    settings: Settings
    total: int | None
    began: int
    numbers: Numbers

    @staticmethod
    def attributes_of(optimizer: Optimizer) -> dict[str, Any]:
        """What makes up an optimizer; schedulers wrap its ``step``, which stays behind."""
        return {name: value for name, value in vars(optimizer).items() if name != "step"}

    def build(self, lane: str, own: Mapping[str, Any]) -> StageResident:
        """``own``: ``{"stage": i}``, from 1. Raises ModelError where the model is captured otherwise than by the
        driver."""
        self.numbers.apply()
        graph = capture(self.model, *self.example)
        if tuple(node.name for node in graph.nodes) != self.nodes:
            raise ModelError(
                f"{graph.model_name} runs other layers in an actor than where it was planned",
                hint="let its forward depend on nothing but its inputs, and install the same code on all machines",
            )
        optimizer: Optimizer = object.__new__(self.optimizer)
        vars(optimizer).update(self.attributes)
        segments = split(graph, self.cuts)
        producers = {node.name: 0 for node in graph.nodes if node.kind == "input"}
        producers |= {name: i for i, segment in enumerate(segments, 1) for name in segment.outputs}
        stages = []
        for index, segment in enumerate(segments, 1):
            if index == own["stage"]:
                share = StageOptimizer(optimizer, segment.parameters.values())
                delay = self.delays[index - 1] / self.accumulate
                weights = policy(segment, share, delay, Corrections.parse(self.correction), self.total, self.began)
            else:
                _forget(segment, optimizer)
                weights = Weights(segment, StageOptimizer(optimizer, ()), 0.0)
            stages.append(Stage(index, segment, producers, weights))
        program = PipelineProgram(
            stages,
            self.loss,
            seed=self.settings.seed,
            autocast=autocast_of(self.settings),
            clip=self.settings.clip,
        )
        return StageResident(program, stages, own["stage"], optimizer)


def _forget(segment: Segment, optimizer: Optimizer) -> None:
    """Free the weights of a stage that lives elsewhere."""
    for parameter in segment.parameters.values():
        parameter.data = torch.empty(0)
        optimizer.state.pop(parameter, None)


class StageResident:
    """Implements ``Resident``: stage ``index`` of ``stages``, the others being there for their names only."""

    def __init__(self, program: PipelineProgram, stages: list[Stage], index: int, optimizer: Optimizer) -> None:
        self._pipeline, self._optimizer = program, optimizer
        self._segment = stages[index - 1].segment
        self._is_last = index == len(stages)
        self._wanted: dict[str, int] = {}  # name of a value that comes in → tensors in it
        for stage in stages:
            for producer in stage.producer_of.values():
                name = f"x{producer}>{index}" if stage.index == index else f"g{stage.index}>{producer}"
                if producer and index in (stage.index, producer):
                    self._wanted[name] = self._wanted.get(name, 0) + 1

    @property
    def program(self) -> PipelineProgram:
        return self._pipeline

    def called(self, ref: Ref) -> str:
        return called(ref)

    def encode(self, ref: Ref, value: Any) -> Any:
        return encode(ref, value)

    def decode(self, ref: Ref, value: Any) -> Any:
        return decode(ref, value, self._wanted)

    def hear(self, news: Any) -> None:
        """``{"batch": t, "hyper": [...]}``: mini-batch t enters with these hyper-parameters."""
        self._pipeline.batches[news["batch"]] = Batch(news["hyper"])

    def result(self, action: Action) -> Any:
        """Of the last stage's forward: the loss, and the tensors of what the model returned."""
        if action.kind == "U":
            del self._pipeline.batches[action.batch]
        if action.kind != "F" or not self._is_last:
            return None
        batch = self._pipeline.batches[action.batch]
        return {"loss": batch.losses.pop(), "output": flatten(batch.outputs.pop(), is_tensor)[0]}

    def answer(self, topic: str, value: Any) -> Any:
        if topic == "state":
            return stage_state(self._segment, self._optimizer)
        if topic == "load":
            put_states([self._segment], self._optimizer, [value])
            return None
        raise unexpected(topic)
