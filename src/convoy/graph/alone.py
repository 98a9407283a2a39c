"""Input gradient and weight gradient of single nodes, measured apart.

In a backward pass one autograd function computes both. To tell them apart, each node with weights runs by itself on
the tensors that it had in the pass: gradient of its inputs only, of its weights only, of both. Nodes that do the same
work on the same shapes share one measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from convoy.graph.profile import Alone
from convoy.graph.random import keyed
from convoy.graph.structure import Structure, flatten
from convoy.graph.timed_pass import PassRunner


@dataclass
class _Case:
    """One sort of work: how to call it, and the seconds measured so far (input, weight, both)."""

    call: Callable[..., Any]
    tensors: list[Tensor]
    structure: Structure
    weights: list[Tensor]
    nodes: list[str] = field(default_factory=list)
    seconds: list[tuple[float, float, float]] = field(default_factory=list)


class AloneRunner:
    """Collects nodes with weights while a pass runs (``observe``), then measures each sort of work once per
    ``run``."""

    def __init__(self, runner: PassRunner) -> None:
        self._runner = runner
        self._trained = {id(p) for p in runner.parameters}
        self._cases: dict[Hashable, _Case] = {}

    def observe(self, position: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """For ``PassRunner.run``: keep the arguments of a node whose two gradients are both wanted."""
        node = self._runner.nodes[position]
        tensors, structure = flatten((args, dict(kwargs)), lambda v: isinstance(v, Tensor))
        call = self._runner.call(node)
        weights = [t for t in tensors if id(t) in self._trained]
        if isinstance(call, nn.Module):
            weights += [p for p in call.parameters() if id(p) in self._trained]
        if not weights or not any(t.requires_grad and id(t) not in self._trained for t in tensors):
            return
        key = _sort(node, call, tensors, weights)
        case = self._cases.get(key)
        if case is None:
            kept = [t if id(t) in self._trained else t.detach().requires_grad_(t.requires_grad) for t in tensors]
            case = self._cases[key] = _Case(call, kept, structure, list(dict.fromkeys(weights)))
        case.nodes.append(node.name)

    def run(self) -> None:
        """Measure every sort of work once more."""
        for case in self._cases.values():
            case.seconds.append(self._measure(case))

    def _measure(self, case: _Case) -> tuple[float, float, float]:
        leaves = [t for t in case.tensors if t.requires_grad and id(t) not in self._trained]
        with torch.enable_grad(), keyed(self._runner.seed, 0):
            with self._runner.context():
                # A copy, so that a module that writes to its argument finds something it may write to.
                fresh = [t.clone() if any(t is leaf for leaf in leaves) else t for t in case.tensors]
                args, kwargs = case.structure.rebuild(fresh)
                result = case.call(*args, **kwargs)
            outputs = [t for t in flatten(result, lambda v: isinstance(v, Tensor))[0] if t.requires_grad]
            grads = [torch.randn_like(t) for t in outputs]
            seconds = []
            for wanted, last in ((leaves, False), (case.weights, False), ([*leaves, *case.weights], True)):
                start = self._runner.now()
                torch.autograd.grad(outputs, wanted, grads, retain_graph=not last, allow_unused=True)
                seconds.append(self._runner.now() - start)
        return seconds[0], seconds[1], seconds[2]

    def results(self, robust: Callable[[Sequence[float]], float]) -> Mapping[str, Alone]:
        """By node name, each number taken by ``robust`` over the runs; empty before the first run."""
        found: dict[str, Alone] = {}
        for case in self._cases.values():
            if case.seconds:
                alone = Alone(*(robust(values) for values in zip(*case.seconds, strict=True)))
                found.update(dict.fromkeys(case.nodes, alone))
        return found


def _sort(node: fx.Node, call: Callable[..., Any], tensors: list[Tensor], weights: list[Tensor]) -> Hashable:
    """Equal for nodes that do the same work. Only PyTorch's own layers are taken to be described by what they print."""
    shapes = tuple((tuple(t.shape), t.stride(), t.dtype, t.requires_grad) for t in (*tensors, *weights))
    if isinstance(call, nn.Module) and type(call).__module__.startswith("torch.nn.modules"):
        return (type(call), call.extra_repr(), call.training, shapes)
    return node.name
