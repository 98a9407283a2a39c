"""What operations do to tensors. Each function here makes the ``run`` of one kind of operation.

They are called without autograd (``torch.no_grad``); what needs it switches it on. A saved value is the triple
(options, parameters, saved) with which the rule's backward calls are made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

import torch
from torch import Tensor

from convoy.graph.graph import Graph
from convoy.graph.random import keyed
from convoy.graph.rules import Saved
from convoy.strategies.batch import detach
from convoy.strategies.tasks.ops import Frame, Partition, Run
from convoy.strategies.tasks.units import Unit

Autocast: TypeAlias = Callable[[], AbstractContextManager[Any]]


def forward(unit: Unit, seed: int, *, mask_given: bool = False) -> Run:
    """Inputs → output, saved. A dropout draws its mask here, unless that is its second input."""
    bound = unit.rule
    rule, options, parameters = bound.rule, bound.options, bound.parameters

    def drawn(frame: Frame, tile: int, args: list[Any]) -> Sequence[Any]:
        with keyed(seed, frame.batch):
            mask = bound.mask(args[0])
        y, saved = rule.forward(options, parameters, (args[0], mask))
        return y, (options, parameters, saved)

    def whole(frame: Frame, tile: int, args: list[Any]) -> Sequence[Any]:
        y, saved = rule.forward(options, parameters, args)
        return y, (options, parameters, saved)

    return whole if bound.draw is None or mask_given else drawn


def input_grad(unit: Unit, wanted: Sequence[int]) -> Run:
    """Saved, gradient of the output → gradients of the inputs at the places ``wanted``."""
    rule = unit.rule.rule

    def run(frame: Frame, tile: int, args: list[Any]) -> Sequence[Any]:
        (options, parameters, saved), grad = args
        if grad is None:
            return (None,) * len(wanted)
        gradients = rule.input_grad(options, parameters, saved, grad)
        return [gradients[place] for place in wanted]

    return run


def weight_grad(unit: Unit) -> Run:
    """Saved, gradient of the output → the list of gradients, one a trained parameter."""
    rule, local = unit.rule.rule, unit.local

    def run(frame: Frame, tile: int, args: list[Any]) -> Sequence[Any]:
        (options, parameters, saved), grad = args
        if grad is None:
            return ([None] * len(local),)
        gradients = rule.weight_grad(options, parameters, saved, grad)
        return ([gradients[name] for name in local],)

    return run


def overwriting_forward(unit: Unit) -> dict[int, Run]:
    """``forward`` in the memory of an input, by the place of the input; nothing where that cannot be."""
    rule, options, parameters = unit.rule.rule, unit.rule.options, unit.rule.parameters

    def relu(frame: Frame, tile: int, args: list[Any]) -> Sequence[Any]:
        y = args[0].relu_()
        return y, (options, parameters, Saved((y,)))

    def plus(place: int) -> Run:
        def run(frame: Frame, tile: int, args: list[Any]) -> Sequence[Any]:
            mine, other = args[place], args[1 - place]
            if mine.shape != other.shape or mine.dtype != other.dtype or mine.stride() != other.stride():
                return forward(unit, 0)(frame, tile, args)
            return mine.add_(other), (options, parameters, Saved(facts=(None, (mine.dtype, mine.dtype))))

        return run

    if rule.kind == "relu":
        return {0: relu}
    if rule.kind == "add" and options.alpha == 1 and len(set(unit.inputs)) == 2:
        return {0: plus(0), 1: plus(1)}
    return {}


def overwriting_input_grad(unit: Unit) -> dict[int, Run]:
    """``input_grad`` in the memory of the gradient (argument 1); nothing where that cannot be."""

    def relu(frame: Frame, tile: int, args: list[Any]) -> Sequence[Any]:
        (_, _, saved), grad = args
        if grad is None:
            return (None,)
        if grad.stride() != saved.tensors[0].stride():  # new memory would be laid out otherwise, and later sums with it
            return input_grad(unit, (0,))(frame, tile, args)
        return (torch.ops.aten.threshold_backward.grad_input(grad, saved.tensors[0], 0, grad_input=grad),)

    return {1: relu} if unit.rule.rule.kind == "relu" else {}


def overwriting_add(count: int) -> dict[int, Run]:
    """``add`` of two in the memory of either: the order of two summands does not matter."""

    def into(place: int) -> Run:
        def run(frame: Frame, tile: int, args: list[Any]) -> Sequence[Any]:
            mine, other = args[place], args[1 - place]
            if mine is None or other is None or mine.stride() != other.stride():
                return add(frame, tile, args)
            return (mine.add_(other),)

        return run

    return {0: into(0), 1: into(1)} if count == 2 else {}


def add(frame: Frame, tile: int, args: list[Any]) -> Sequence[Any]:
    """Gradients of one value from several consumers, added in the order given: that in which autograd meets them.
    The result is new memory."""
    there = [gradient for gradient in args if gradient is not None]
    if len(there) < 2:
        return (there[0].clone() if there else None,)
    total = there[0] + there[1]
    for gradient in there[2:]:
        total += gradient
    return (total,)


def join(partition: Partition) -> Run:
    """All tiles → the whole."""
    return lambda frame, tile, args: (partition.join(args[0]),)


def whole_forward(unit: Unit, wanted: Sequence[int], seed: int, autocast: Autocast) -> Run:
    """Under autograd: inputs → outputs (detached), and what the backward pass needs. ``wanted``: inputs that will get
    a gradient."""
    assert unit.segment is not None
    module = unit.segment.module

    def run(frame: Frame, tile: int, args: list[Any]) -> Sequence[Any]:
        leaves = [a.detach().requires_grad_() if place in wanted else a for place, a in enumerate(args)]
        with torch.enable_grad(), autocast(), keyed(seed, frame.batch):
            outputs = module(*leaves)
        return (*map(_detached, outputs), (leaves, outputs))

    return run


def whole_backward(unit: Unit, wanted: Sequence[int], given: Sequence[int]) -> Run:
    """What was kept, gradients of the outputs ``given`` → gradients of the inputs ``wanted``, list of those of the
    trained parameters. Whatever gets no gradient has None."""

    def run(frame: Frame, tile: int, args: list[Any]) -> Sequence[Any]:
        (leaves, outputs), *gradients = args
        pairs = [
            (outputs[place], g)
            for place, g in zip(given, gradients, strict=True)
            if g is not None and isinstance(outputs[place], Tensor) and outputs[place].requires_grad
        ]
        targets = [*(leaves[place] for place in wanted), *unit.parameters]
        wanting = [t for t in targets if isinstance(t, Tensor) and t.requires_grad]
        found: dict[int, Tensor | None] = {}
        if pairs and wanting:
            roots, seeds = zip(*pairs, strict=True)
            got = torch.autograd.grad(roots, wanting, seeds, allow_unused=True)
            found = {id(t): g for t, g in zip(wanting, got, strict=True)}
        results = [found.get(id(t)) for t in targets]
        return (*results[: len(wanted)], _own(results[len(wanted) :], [*gradients, *results[: len(wanted)]]))

    return run


def loss(graph: Graph, function: Callable[[Any, Any], Tensor], leaves: Sequence[str], wanted: Sequence[int],
         autocast: Autocast) -> Run:  # fmt: skip
    """The model's results and the target → gradients of the results ``wanted``, and None. Loss and output go to
    the frame."""
    assert graph.output is not None
    structure = graph.output
    place = {name: i for i, name in enumerate(leaves)}
    order = [place[node.name] for node in _result_nodes(graph)]

    def run(frame: Frame, tile: int, args: list[Any]) -> Sequence[Any]:
        *values, target = args
        results = [v.detach().requires_grad_() if i in wanted else v for i, v in enumerate(values)]
        with torch.enable_grad():
            with autocast():
                output = structure.rebuild(results[i] for i in order)
                value = function(output, target)
            torch.autograd.backward(value)
        frame.loss, frame.output = value.detach(), detach(output)
        return (*(results[i].grad for i in wanted), None)

    return run


def _result_nodes(graph: Graph) -> list[Any]:
    """The fx nodes of the model's results, in the order of its output structure."""
    (output,) = (n for n in graph.program.graph.nodes if n.op == "output")
    found: list[Any] = []
    torch.fx.map_arg(output.args[0], found.append)
    return found


def _own(gradients: Sequence[Tensor | None], others: Sequence[Tensor | None]) -> list[Tensor | None]:
    """``gradients``, copied where one shares memory with another or is expanded: they may be changed in place."""
    seen = {t.untyped_storage().data_ptr() for t in others if t is not None}
    result = []
    for g in gradients:
        if g is not None and (g.untyped_storage().data_ptr() in seen or 0 in g.stride()):
            g = g.clone(memory_format=torch.contiguous_format)
        if g is not None:
            seen.add(g.untyped_storage().data_ptr())
        result.append(g)
    return result


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
