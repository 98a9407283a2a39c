"""The faithful form: the error of a remembered sample goes back through the current weights, with remembered outcomes,
while the forward pass runs; from a planned layer downwards with the true outcomes, which are there by then.

Source: Park and Suh, "Speculative Backpropagation for CNN Parallel Training", IEEE Access 8, 2020, for the idea; the
rest is a reconstruction. In a BatchNorm above that layer, the terms that couple samples need the mini-batch's own
activations and are left out: δ̃ ← δ̃ · γ σ⁻¹ with σ of the mini-batch before.

With predictor "zero" the remembered softmax of a label is the label itself, p̃_c = e_c (ours). Then δ̃ = 0: nothing is
sent back and nothing remembered, and accepted samples, of which the network is sure, are left out of the backward pass.
The test is on the error itself, ‖δ‖₁ < θ, which is ‖p − e_c‖₁ for cross-entropy and right for any other loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from convoy.errors import ModelError, OptionError
from convoy.graph.random import keyed
from convoy.graph.rules.activations import SignActivation
from convoy.graph.split import cut_after_layer, cut_at_module, cut_name
from convoy.schedule.plan import megabytes
from convoy.strategies.speculative import kernels
from convoy.strategies.speculative.acceptance import Selection, by_distance, by_draw, by_softmax
from convoy.strategies.speculative.frame import notes
from convoy.strategies.speculative.lower import Memory, Part
from convoy.strategies.speculative.outcomes import KINDS, OutcomeMemory, Remembers
from convoy.strategies.speculative.region import Flops, Region, check_rules, logits_of
from convoy.strategies.speculative.registry import Choice
from convoy.strategies.speculative.templates import Template
from convoy.strategies.tasks.ops import Frame, Run
from convoy.strategies.tasks.units import Unit, Units

LOGITS = "logits"


def faithful_region(units: Units, remembering: bool) -> Region:
    """All that is trained. Raises ModelError for the first layer through which no remembered error can be sent, or,
    where nothing is remembered, not those of some samples alone."""
    inside = frozenset(units.active)
    for unit in units.units if remembering else ():
        if unit.bound is None or unit.rule.rule.kind not in KINDS:
            node = units.graph.by_name[unit.name]
            where = f" ({node.line})" if node.line else ""
            raise ModelError(
                f"layer {node.path or node.name} of kind {node.kind}{where} has no outcome to remember",
                hint="use form='cut' with a cut below it, or strategy pipelined",
            )
    check_rules(units, inside, "use form='cut' with a cut below it")
    return Region(logits_of(units), inside, "")


def true_from(units: Units, flops: Flops, cut: str | int | None) -> tuple[str, frozenset[str]]:
    """The name of the first node whose outcomes are remembered ones, and the units that are sent back from memory.

    Planned: a layer uses its true outcomes if its forward pass is over by the time the error can have come to it, with
    equal engines and times that follow the operations.
    """
    graph = units.graph
    if cut is not None:
        at = cut_after_layer(graph, cut) if isinstance(cut, int) else cut_at_module(graph, cut)
        above = [u.name for u in units.units if graph.position[u.name] >= at]
    else:
        done, clock = {}, 0
        for unit in units.units:
            clock += flops[unit.name][0]
            done[unit.name] = clock
        above, arrival = [], 0
        for unit in reversed(units.units):
            if done[unit.name] <= arrival:
                break
            above.append(unit.name)
            arrival += flops[unit.name][1]
        at = min((graph.position[name] for name in above), default=len(graph.nodes) - 1)
    return cut_name(graph, at), frozenset(above) & units.active


def outcomes_of(units: Units, names: frozenset[str], mean: bool) -> dict[str, Remembers]:
    """What has to be remembered for these units."""
    specs, found = units.specs, {}
    classes = specs[logits_of(units)].shape[1]
    for unit in units.units:
        if unit.name in names:
            shapes = (specs[unit.inputs[0]].shape[1:], specs[unit.outputs[0]].shape[1:])
            remembers = Remembers.of(unit, *shapes, classes, mean)
            if remembers is not None:
                found[unit.name] = remembers
    return found


def make_memory(units: Units, remembers: Mapping[str, Remembers], mean: bool, limit_bytes: int) -> OutcomeMemory:
    """Raises OptionError where it does not fit."""
    classes = units.specs[logits_of(units)].shape[1]
    need = OutcomeMemory.bytes(remembers, classes)
    if need > limit_bytes:
        raise OptionError(
            f"outcomes of {classes} labels take {megabytes(need)}, and memory is {megabytes(limit_bytes)}",
            hint="raise memory, or use true outcomes from a higher layer on (cut)",
        )
    return OutcomeMemory(remembers, classes, mean)


def confident_part(region: Region, choice: Choice, threshold: float, seed: int) -> Part:
    """What is lowered where samples with hardly any error at the logits are left out of the backward pass."""

    def test(frame: Frame, speculated: Tensor | None, exact: Tensor) -> Selection:
        distance = exact.float().abs().sum(1) * exact.shape[0]  # of the samples' own losses, not their mean
        if choice.dithered:
            return by_draw(distance, threshold, seed, frame.batch)
        return by_distance(distance, threshold)

    return Part(region.start, region.inside, kernels.compare(test), (), None)


def faithful_part(
    units: Units, region: Region, names: frozenset[str], memory: OutcomeMemory, made: Mapping[str, Template],
    threshold: float, seed: int,
) -> Part:  # fmt: skip
    """What is lowered for the faithful form. ``names``: units that act from memory."""
    logits = region.start
    memories = [Memory(LOGITS, _learn_logits(memory), ("t", f"y.{logits}", f"d.{logits}"))]
    remembered = {}
    for unit in units.units:
        if unit.name in names:
            wanted = tuple(i for i, name in enumerate(unit.inputs) if name in units.needs)
            remembered[unit.name] = _send_back(unit, wanted, memory, made[unit.name], seed)
            if unit.name in memory.stores:
                memories.append(Memory(unit.name, _learn(unit, memory), ("t", f"s.{unit.name}")))
    return Part(
        start=logits,
        inside=region.inside,
        compare=_compare(memory, threshold),
        compared=(f"y.{logits}", "t"),
        predict=_predict(memory),
        predicted_from=("t",),
        start_memory=(f"M{LOGITS}",),
        remembered=remembered,
        memories=tuple(memories),
        early=False,
    )


def _predict(memory: OutcomeMemory) -> Run:
    def run(frame: Frame, tile: int, args: list[Any]) -> Sequence[Any]:
        (labels,) = args
        return (memory.error[labels] / labels.shape[0],)

    return run


def _compare(memory: OutcomeMemory, threshold: float) -> Run:
    def run(frame: Frame, tile: int, args: list[Any]) -> Sequence[Any]:
        logits, labels = args
        softmax = torch.softmax(logits.float(), 1)
        selection = by_softmax(memory.softmax[labels], softmax, memory.seen[labels], threshold)
        notes(frame)["selection"] = selection
        return (selection,)

    return run


def _learn_logits(memory: OutcomeMemory) -> Run:
    def run(frame: Frame, tile: int, args: list[Any]) -> Sequence[Any]:
        labels, logits, error = args
        memory.learn_logits(labels, logits, error * labels.shape[0])
        return ()

    return run


def _learn(unit: Unit, memory: OutcomeMemory) -> Run:
    def run(frame: Frame, tile: int, args: list[Any]) -> Sequence[Any]:
        labels, (_, _, saved) = args
        memory.learn(unit, labels, saved)
        return ()

    return run


def _send_back(unit: Unit, wanted: Sequence[int], memory: OutcomeMemory, template: Template, seed: int) -> Run:
    """Gradient of the output, labels → gradients of the inputs ``wanted``, without the sample's own forward pass."""
    bound = unit.rule
    rule, options, parameters = bound.rule, bound.options, bound.parameters

    def signs(frame: Frame, grad: Tensor, labels: Tensor) -> Sequence[Tensor | None]:
        assert isinstance(rule, SignActivation)
        passes = memory.signs(unit, labels, tuple(grad.shape[1:]))
        return (torch.where(passes, grad, rule.otherwise(options, grad)),)

    def choices(frame: Frame, grad: Tensor, labels: Tensor) -> Sequence[Tensor | None]:
        return rule.input_grad_from(options, memory.choices(unit, labels, template.input.shape), grad)

    def scaled(frame: Frame, grad: Tensor, labels: Tensor) -> Sequence[Tensor | None]:
        scale, weight = memory.stores[unit.name], parameters.get("weight")
        scale = scale if weight is None else scale * weight
        return (grad * scale.to(grad.dtype).view(-1, *[1] * (grad.dim() - 2)),)

    def dropped(frame: Frame, grad: Tensor, labels: Tensor) -> Sequence[Tensor | None]:
        if bound.draw is None:
            return (grad,)
        with keyed(seed, frame.batch):  # the key's own mask: that which the forward pass will draw
            return (grad * bound.mask(template.input.tensor(grad.shape[0])), None)

    def sized(frame: Frame, grad: Tensor, labels: Tensor) -> Sequence[Tensor | None]:
        return rule.input_grad(options, parameters, template.make(grad.shape[0]), grad)

    special = {"max_pool": choices, "batch_norm": scaled, "dropout": dropped}
    send = signs if isinstance(rule, SignActivation) else special.get(rule.kind, sized)

    def run(frame: Frame, tile: int, args: list[Any]) -> Sequence[Any]:
        grad, labels = args
        gradients = send(frame, grad, labels)
        return [gradients[place] for place in wanted]

    return run
