"""A stage's share of the user's optimizer: same class, same state, same groups, fewer parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from convoy.errors import OptionError

Hyper = list[dict[str, Any]]
"""What the parameter groups said (learning rate, momentum, ...) when a batch entered; one mapping a group."""


def check(optimizer: Optimizer) -> None:
    """Refuse what cannot be cut into stages: an optimizer whose step needs a closure or couples all parameters."""
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise OptionError(
            f"{type(optimizer).__name__} evaluates the whole model in its step and cannot be cut into stages",
            hint="choose SGD, Adam, AdamW or another first-order optimizer, or train sequentially",
        )


def snapshot(optimizer: Optimizer) -> Hyper:
    """The groups' hyper-parameters now, without the parameters."""
    return [{k: _fixed(v) for k, v in group.items() if k != "params"} for group in optimizer.param_groups]


def _fixed(value: Any) -> Any:
    """A learning rate may be a tensor, which schedulers change in place."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    return tuple(map(_fixed, value)) if type(value) is tuple else value


def extent(optimizer: Optimizer) -> tuple[int, ...]:
    """Parameters in each group. They are dealt out to the stages once, so this may not change afterwards."""
    return tuple(len(group["params"]) for group in optimizer.param_groups)


class StageOptimizer:
    """Steps the parameters of one stage with the hyper-parameters recorded when the batch entered.

    State is the user's own (same mapping, keyed by parameter, also after ``load_state_dict``), so that
    ``optimizer.state_dict()`` is after a drain what plain training would hold.
    """

    def __init__(self, optimizer: Optimizer, parameters: Iterable[Tensor]) -> None:
        own = {id(p) for p in parameters}
        attributes = {k: v for k, v in vars(optimizer).items() if k not in ("step", "param_groups")}
        self._whole = optimizer
        self._optimizer: Optimizer = object.__new__(type(optimizer))
        vars(self._optimizer).update(attributes)
        self._optimizer.param_groups = [
            {**group, "params": [p for p in group["params"] if id(p) in own]} for group in optimizer.param_groups
        ]
        self.parameters: list[Tensor] = [p for g in self._optimizer.param_groups for p in g["params"]]

    def clip(self, norm: float | None) -> None:
        """Bound the norm of the stage's gradients."""
        if norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, norm)

    def step(self, hyper: Hyper, keep_gradients: bool = False) -> None:
        """Update with the recorded hyper-parameters and forget the gradients."""
        for group, recorded in zip(self._optimizer.param_groups, hyper, strict=True):
            group.update(recorded)
        self._optimizer.state = self._whole.state
        self._optimizer.step()
        if not keep_gradients:
            self._optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def spike_step(self, hyper: Hyper, factors: Callable[[float], tuple[float, float]]) -> None:
        """SGD with spike compensation: v ← m v + g, w ← w - lr (a v + b g) with (a, b) = ``factors(m)``."""
        for parameters, recorded in self.groups(hyper):
            a, b = factors(recorded["momentum"])
            lr, decay = float(recorded["lr"]), recorded["weight_decay"]
            for p in parameters:
                if p.grad is None:
                    continue
                gradient = p.grad.add(p, alpha=decay) if decay else p.grad
                state = self.state(p)
                velocity = state.get("momentum_buffer")
                if velocity is None:
                    velocity = state["momentum_buffer"] = torch.zeros_like(p)
                velocity.mul_(recorded["momentum"]).add_(gradient)
                p.add_(velocity, alpha=-lr * a).add_(gradient, alpha=-lr * b)
                p.grad = None

    def groups(self, hyper: Hyper) -> Iterator[tuple[list[Tensor], dict[str, Any]]]:
        """The stage's parameters by group, with what was recorded for the group."""
        for group, recorded in zip(self._optimizer.param_groups, hyper, strict=True):
            yield group["params"], recorded

    def state(self, parameter: Tensor) -> dict[str, Any]:
        """The optimizer's state of one parameter; the user's own mapping."""
        state: dict[str, Any] = self._whole.state[parameter]
        return state


def mark_stepped(optimizer: Optimizer) -> None:
    """Tell the user's optimizer that its parameters were stepped, which learning-rate schedulers look for."""
    optimizer._opt_called = True  # type: ignore[attr-defined]


def describe(hyper: Hyper) -> Mapping[str, Any]:
    """The first group's learning rate, for messages."""
    return {"lr": hyper[0].get("lr")} if hyper else {}
