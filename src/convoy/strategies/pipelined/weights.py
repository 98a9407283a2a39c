"""Which weights a stage's forward and backward see, and how its update is made.

One policy a stage. The plain one is the publication's: forward and backward both see the weights as they are, which is
one copy. Corrections change one of four places: what the forward sees (a prediction), what the backward sees (a stash,
or PipeMare's estimate of it), the gradient (DC-ASGD), the step (spike compensation, learning rates per stage).
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from convoy.graph.split import Segment
from convoy.strategies.pipelined.corrections import (
    Corrections,
    pipemare_decay,
    pipemare_lr_factor,
    prediction_factor,
    spike_factors,
    stage_lr_factor,
)
from convoy.strategies.pipelined.current import CurrentWeights, hold, release
from convoy.strategies.pipelined.derived import derived_parameters
from convoy.strategies.pipelined.optimizer import Hyper, StageOptimizer

DC_ASGD_LAMBDA = 0.04


class Weights:
    """The publication: one copy, always the current one. ``delay`` in updates; 0 needs no hooks at all."""

    def __init__(self, segment: Segment, optimizer: StageOptimizer, delay: float) -> None:
        self.module = segment.module
        self.optimizer = optimizer
        self.delay = delay
        self.parameters: list[nn.Parameter] = list(segment.parameters.values())
        self._current = self._hooks() if delay else None

    def _hooks(self) -> CurrentWeights:
        return CurrentWeights(self.parameters, derived=derived_parameters(self.module))

    def run(self, unit: tuple[int, int], hyper: Hyper, values: tuple[Any, ...]) -> Any:
        """The stage's forward pass for one part."""
        with self._current.hooks() if self._current is not None else nullcontext():
            return self.module(*values)

    def before_backward(self, unit: tuple[int, int]) -> None:
        """Called before the backward pass of a part."""

    def after_backward(self, unit: tuple[int, int]) -> None:
        """Called after it."""

    def update(self, batch: int, hyper: Hyper, clip: float | None) -> None:
        """The step of one mini-batch."""
        self.optimizer.clip(clip)
        self.optimizer.step(hyper)


class Stepped(Weights):
    """Changes of the step: ``spike`` and ``stage-lr``, alone or together."""

    def __init__(self, segment: Segment, optimizer: StageOptimizer, delay: float, corrections: Corrections) -> None:
        super().__init__(segment, optimizer, delay)
        self._scale = stage_lr_factor(delay) if "stage-lr" in corrections else 1.0
        self._spike = "spike" in corrections

    def rates(self, hyper: Hyper) -> Hyper:
        """``hyper`` with the learning rates that this stage steps with."""
        return scaled(hyper, self._scale) if self._scale != 1.0 else hyper

    def update(self, batch: int, hyper: Hyper, clip: float | None) -> None:
        self.optimizer.clip(clip)
        hyper = self.rates(hyper)
        if self._spike and self.delay:
            self.optimizer.spike_step(hyper, lambda momentum: spike_factors(self.delay, momentum))
        else:
            self.optimizer.step(hyper)


class Predicted(Stepped):
    """Look-ahead in the forward only: w - eta_i c v in a buffer of its own, eta_i the rate that the stage steps with;
    backward reads w."""

    def __init__(self, segment: Segment, optimizer: StageOptimizer, delay: float, corrections: Corrections) -> None:
        self._buffers = {id(p): torch.empty_like(p) for p in segment.parameters.values()}
        super().__init__(segment, optimizer, delay, corrections)
        assert corrections.prediction is not None
        self._kind = corrections.prediction
        self._names = dict(self.module.named_parameters(remove_duplicate=False))

    def _hooks(self) -> CurrentWeights:
        return CurrentWeights(self.parameters, aliases=[(self._buffers[id(p)], p) for p in self.parameters])

    def run(self, unit: tuple[int, int], hyper: Hyper, values: tuple[Any, ...]) -> Any:
        if not self.delay:
            return super().run(unit, hyper, values)
        ahead = self._look_ahead(hyper)
        seen = {name: ahead[id(p)] for name, p in self._names.items() if id(p) in ahead}
        assert self._current is not None
        with self._current.hooks():
            return torch.func.functional_call(self.module, seen, values)

    def _look_ahead(self, hyper: Hyper) -> dict[int, Tensor]:
        """Parameter's id → its prediction, a tensor whose gradient goes to the parameter."""
        result: dict[int, Tensor] = {}
        for group, recorded in self.optimizer.groups(self.rates(hyper)):
            factor = float(recorded["lr"]) * prediction_factor(self._kind, self.delay, recorded["momentum"])
            for p in group:
                velocity = self.optimizer.state(p).get("momentum_buffer")
                if velocity is None or not p.requires_grad:
                    continue
                buffer = self._buffers[id(p)]
                with torch.no_grad():
                    torch.sub(p, velocity, alpha=factor, out=buffer)
                result[id(p)] = _Ahead.apply(p, buffer)  # type: ignore[no-untyped-call]
        return result


class Stashed(Weights):
    """PipeDream: backward with the weights of the forward pass. An old version is copied only when an update is about
    to change it while a part is still in flight: at most ceil(D) copies and the weights themselves."""

    def __init__(self, segment: Segment, optimizer: StageOptimizer, delay: float, compensate: bool = False) -> None:
        super().__init__(segment, optimizer, delay)
        self._now = _Version()
        self._used: dict[tuple[int, int], _Version] = {}
        self._place = {p.untyped_storage().data_ptr(): i for i, p in enumerate(self.parameters)}
        self._compensate = compensate

    def run(self, unit: tuple[int, int], hyper: Hyper, values: tuple[Any, ...]) -> Any:
        if not self.delay:
            return super().run(unit, hyper, values)
        version = self._now
        version.users += 1
        self._used[unit] = version
        with saved_tensors_hooks(lambda t: self._pack(t, version), self._unpack):
            return self.module(*values)

    def after_backward(self, unit: tuple[int, int]) -> None:
        version = self._used.pop(unit, None)
        if version is None:
            return
        if self._compensate and version.tensors is not None:
            for p, old in zip(self.parameters, version.tensors, strict=True):
                if p.grad is not None:
                    p.grad.addcmul_(p.grad.square(), p.detach() - old, value=DC_ASGD_LAMBDA)
        version.users -= 1

    def update(self, batch: int, hyper: Hyper, clip: float | None) -> None:
        if self._now.users:
            self._now.tensors = [p.detach().clone() for p in self.parameters]
            self._now = _Version()
        super().update(batch, hyper, clip)

    @property
    def copies(self) -> int:
        """Stashed versions held now, for tests and forecasts."""
        return len({id(v) for v in self._used.values() if v.tensors is not None})

    def _pack(self, tensor: Tensor, version: _Version) -> Any:
        place = self._place.get(tensor.untyped_storage().data_ptr())
        if place is None:
            return hold(tensor)
        return _Stash(version, place, tensor.detach())

    def _unpack(self, packed: Any) -> Tensor:
        if not isinstance(packed, _Stash):
            return release(packed)
        if packed.version.tensors is None:
            return packed.view
        view, copy = packed.view, packed.version.tensors[packed.place]
        return copy.as_strided(view.size(), view.stride(), view.storage_offset())


class PipeMare(Weights):
    """T1: a learning rate that starts lower where the delay is longer. T2: backward at w - D delta, an estimate of the
    forward's weights from a running mean delta of the updates.

    delta is kept in the optimizer's state (``pipemare_drift``), so that checkpoints hold it.
    """

    def __init__(self, segment: Segment, optimizer: StageOptimizer, delay: float, total_steps: int, began: int) -> None:
        self._estimate = [p.detach().clone() for p in segment.parameters.values()] if delay else []
        self._total, self._began = total_steps, began
        super().__init__(segment, optimizer, delay)

    def _hooks(self) -> CurrentWeights:
        estimates = {id(p): e for p, e in zip(self.parameters, self._estimate, strict=True)}
        return CurrentWeights(self.parameters, sources=estimates)

    def before_backward(self, unit: tuple[int, int]) -> None:
        for p, estimate in zip(self.parameters, self._estimate, strict=False):
            drift = self.optimizer.state(p).get("pipemare_drift") if p.requires_grad else None
            if drift is None:
                estimate.copy_(p.detach())
            else:
                torch.sub(p.detach(), drift, alpha=self.delay, out=estimate)

    def update(self, batch: int, hyper: Hyper, clip: float | None) -> None:
        if not self.delay:
            super().update(batch, hyper, clip)
            return
        old = {p: p.detach().clone() for p in self.optimizer.parameters if p.grad is not None}
        factor = pipemare_lr_factor(self.delay, batch - self._began, self._total)
        super().update(batch, scaled(hyper, factor), clip)
        gamma = pipemare_decay(self.delay)
        for p, before in old.items():
            state = self.optimizer.state(p)
            drift = state.setdefault("pipemare_drift", torch.zeros_like(p))
            drift.mul_(gamma).add_(p.detach() - before, alpha=1 - gamma)


class _Version:
    """One version of a stage's weights: how many parts in flight read it, and its copy once it had to be made."""

    def __init__(self) -> None:
        self.users = 0
        self.tensors: list[Tensor] | None = None


class _Stash:
    __slots__ = ("place", "version", "view")

    def __init__(self, version: _Version, place: int, view: Tensor) -> None:
        self.version, self.place, self.view = version, place, view


class _Ahead(torch.autograd.Function):
    """Passes the prediction on and the gradient to the parameter itself."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, prediction: Tensor) -> Tensor:
        return prediction.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def scaled(hyper: Hyper, factor: float) -> Hyper:
    """The same hyper-parameters with every learning rate times ``factor``."""
    return [{**group, "lr": group["lr"] * factor} for group in hyper]


def policy(
    segment: Segment, optimizer: StageOptimizer, delay: float, corrections: Corrections, total_steps: int | None,
    began: int = 0,
) -> Weights:  # fmt: skip
    """The policy of one stage whose delay is ``delay`` updates, in a pipeline whose first update is that of mini-batch
    ``began`` of the ``total_steps`` that the run has."""
    if "stash" in corrections or "dc-asgd" in corrections:
        return Stashed(segment, optimizer, delay, compensate="dc-asgd" in corrections)
    if "pipemare" in corrections:
        return PipeMare(segment, optimizer, delay, total_steps or 1, began)
    if corrections.prediction is not None:
        return Predicted(segment, optimizer, delay, corrections)
    if corrections:
        return Stepped(segment, optimizer, delay, corrections)
    return Weights(segment, optimizer, delay)
