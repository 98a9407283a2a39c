"""What forward, backward and update of a stage do to tensors.

Names in the store, u the running number of the part: ``i{stage}@u`` what the batch itself gives a stage, ``x{p}>{c}@u``
the values stage p hands to stage c, ``g{c}>{p}@u`` their gradients, ``s{stage}@u`` what a stage keeps between its
forward and its backward, ``u{stage}@t`` "the gradients of batch t are complete". Weights, their gradients and the
BatchNorm estimates stay where the user's module has them: one copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from convoy.engines.program import Store
from convoy.errors import InternalError
from convoy.graph.random import keyed
from convoy.graph.split import Segment
from convoy.schedule.action import Action, Ref
from convoy.strategies.batch import detach, to_device
from convoy.strategies.pipelined.entry import Entry, entry_of
from convoy.strategies.pipelined.optimizer import Hyper
from convoy.strategies.pipelined.weights import Weights


@dataclass(slots=True)
class Handed:
    """Values on their way from one stage to a later one, detached, with the flags autograd needs."""

    tensors: tuple[Any, ...]
    needs_grad: tuple[bool, ...]

    @property
    def bytes(self) -> int:
        return sum(t.nbytes for t in self.tensors if isinstance(t, Tensor))


@dataclass(slots=True)
class Kept:
    """What a stage keeps of one part: received leaves by producer, and where the gradients of its outputs go in."""

    received: dict[int, list[Tensor | None]]
    entry: Entry | None = None
    loss: Tensor | None = None
    share: float = 1.0


@dataclass(slots=True)
class Batch:
    """One mini-batch on its way: its hyper-parameters, and where its results go."""

    hyper: Hyper
    losses: list[Tensor] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)


@dataclass(slots=True)
class Fed:
    """What the driver brings for one part: model inputs by value name, the target, its share of the loss."""

    values: Mapping[str, Any]
    target: Any
    share: float


class Stage:
    """One segment of the model with its weights' policy and its place among the others."""

    def __init__(
        self,
        index: int,
        segment: Segment,
        producers: Mapping[str, int],
        weights: Weights,
        device: torch.device | None = None,
    ) -> None:
        self.index = index
        self.device = device  # where there are several; None: values stay where they are
        self.segment = segment
        self.weights = weights
        self.producer_of = {name: producers[name] for name in segment.inputs}
        """Value name → the stage that makes it, 0 for the batch itself."""


class PipelineProgram:
    """Implements ``Program`` for a pipeline of stages."""

    def __init__(
        self,
        stages: Sequence[Stage],
        loss: Callable[[Any, Any], Tensor],
        *,
        seed: int,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        clip: float | None = None,
    ) -> None:
        self.stages = {str(stage.index): stage for stage in stages}
        self.batches: dict[int, Batch] = {}
        self._loss, self._seed, self._autocast, self._clip = loss, seed, autocast, clip
        self._last = len(stages)
        self._fed: dict[tuple[int, int], Fed] = {}
        # consumer → names it wants of each producer, in the consumer's own order
        self._wanted: dict[tuple[int, int], list[str]] = {}
        for stage in stages:
            for name, producer in stage.producer_of.items():
                self._wanted.setdefault((producer, stage.index), []).append(name)
        self._slot = {stage.index: {n: i for i, n in enumerate(stage.segment.outputs)} for stage in stages}
        self._actions = {"F": self._forward, "B": self._backward, "U": self._update, "E": self._enter}

    @property
    def links(self) -> tuple[tuple[int, int], ...]:
        """(producer, consumer) pairs between which values cross."""
        return tuple(sorted(pair for pair in self._wanted if pair[0]))

    @property
    def fed(self) -> tuple[int, ...]:
        """Stages that need something of the batch itself: inputs, or the target."""
        return tuple(sorted({consumer for producer, consumer in self._wanted if not producer} | {1, self._last}))

    def bring(self, batch: int, part: int, fed: Fed) -> None:
        """Called by the driver before the batch's actions are submitted."""
        self._fed[batch, part] = fed

    def run(self, action: Action, store: Store) -> int:
        return self._actions[action.kind](action, store)

    # --- the four kinds ------------------------------------------------------------------------------------

    def _enter(self, action: Action, store: Store) -> int:
        fed = self._fed.pop((action.batch, action.part))
        for ref in action.writes:
            store.put(ref, fed)
        return 0

    def _forward(self, action: Action, store: Store) -> int:
        stage = self.stages[action.subject]
        values, received, fed = self._gather(stage, action, store)
        batch = self.batches[action.batch]
        unit = (action.batch, action.part)
        with torch.enable_grad(), self._autocast(), keyed(self._seed, *unit):
            inputs = tuple(values[name] for name in stage.segment.inputs)
            outputs = stage.weights.run(unit, batch.hyper, inputs)
            loss = None
            if stage.index == self._last and fed is not None:
                loss = self._loss(outputs, _to(fed.target, stage.device))
        kept = Kept(received)
        if loss is not None:
            assert fed is not None
            kept.loss, kept.share = loss, fed.share
            batch.losses.append(loss.detach() * fed.share if fed.share != 1.0 else loss.detach())
            batch.outputs.append(detach(outputs))
        moved = 0
        kept_at: Ref | None = None
        sent_to: dict[int, Sequence[Any]] = {}
        for ref in action.writes:
            if ref.name[0] != "x":
                kept_at = ref
                continue
            consumer = int(ref.name.partition(">")[2])
            sent = [outputs[self._slot[stage.index][name]] for name in self._wanted[stage.index, consumer]]
            flags = tuple(isinstance(v, Tensor) and v.requires_grad for v in sent)
            sent_to[consumer] = [v if flag else None for v, flag in zip(sent, flags, strict=True)]
            handed = Handed(tuple(v.detach() if isinstance(v, Tensor) else v for v in sent), flags)
            moved += handed.bytes
            store.put(ref, handed)
        kept.entry = entry_of(sent_to)
        if kept_at is not None:
            store.put(kept_at, kept)
        return moved

    def _gather(
        self, stage: Stage, action: Action, store: Store
    ) -> tuple[dict[str, Any], dict[int, list[Tensor | None]], Fed | None]:
        """Input values by name, the leaves whose gradients go back by producer, and what the batch brought."""
        values: dict[str, Any] = {}
        received: dict[int, list[Tensor | None]] = {}
        fed: Fed | None = None
        for ref in action.reads:
            if ref.name[0] == "i":
                fed = store.take(ref)
                values.update({n: _to(fed.values[n], stage.device) for n in self._wanted.get((0, stage.index), ())})
            elif ref.name[0] == "x":
                producer = int(ref.name[1:].partition(">")[0])
                handed: Handed = store.take(ref)
                leaves: list[Tensor | None] = []
                for name, value, flag in zip(
                    self._wanted[producer, stage.index], handed.tensors, handed.needs_grad, strict=True
                ):
                    value = _to(value, stage.device)
                    leaf = value.detach().requires_grad_() if flag else value
                    values[name] = leaf
                    leaves.append(leaf if flag else None)
                received[producer] = leaves
        return values, received, fed

    def _backward(self, action: Action, store: Store) -> int:
        stage = self.stages[action.subject]
        kept: Kept | None = None
        gradients: dict[int, list[Tensor | None]] = {}
        for ref in action.reads:
            if ref.name[0] == "s":
                kept = store.take(ref)
            elif ref.name[0] == "g":
                consumer = int(ref.name[1:].partition(">")[0])
                gradients[consumer] = [_to(t, stage.device) for t in store.take(ref)]
        if kept is None:
            raise InternalError(f"{action.label} has nothing kept from its forward pass")
        unit = (action.batch, action.part)
        stage.weights.before_backward(unit)
        if kept.loss is not None:
            if kept.loss.requires_grad:
                torch.autograd.backward(
                    kept.loss, torch.full_like(kept.loss, kept.share) if kept.share != 1.0 else None
                )
        elif kept.entry is not None:
            kept.entry.backward(gradients)
        stage.weights.after_backward(unit)
        moved = 0
        for ref in action.writes:
            if ref.name[0] == "g":
                producer = int(ref.name.partition(">")[2])
                back = [leaf.grad if leaf is not None else None for leaf in kept.received[producer]]
                moved += sum(t.nbytes for t in back if t is not None)
                store.put(ref, back)
            else:
                store.put(ref, None)
        return moved

    def _update(self, action: Action, store: Store) -> int:
        stage = self.stages[action.subject]
        store.take(Ref(f"u{action.subject}", action.batch))
        stage.weights.update(action.batch, self.batches[action.batch].hyper, self._clip)
        return 0


def _to(value: Any, device: torch.device | None) -> Any:
    """``value`` on ``device``; as it is where there is only one."""
    return value if device is None or value is None else to_device(value, device)
