"""Where speculation takes place: the cut, and the layers whose backward pass is speculated. Refuses what cannot be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from convoy.errors import ModelError
from convoy.graph.flops import node_flops
from convoy.graph.graph import Graph
from convoy.graph.split import allowed_cuts, crossing, cut_after_layer, cut_at_module, cut_name
from convoy.strategies.speculative.kernels import coupled
from convoy.strategies.tasks.units import Unit, Units

Flops = Mapping[str, tuple[int, int, int]]
"""Unit name → operations of forward, input gradient and weight gradient."""


@dataclass(frozen=True)
class Region:
    """``start``: the value whose signal is speculated; ``inside``: the units below it through which it is sent;
    ``cut``: the node before which the cut falls, by its name."""

    start: str
    inside: frozenset[str]
    cut: str


def logits_of(units: Units) -> str:
    """The name of the model's only result. Raises ModelError unless it is one row of class scores a sample."""
    leaves = units.leaves
    specs = units.specs
    if len(leaves) != 1 or leaves[0] not in specs or len(specs[leaves[0]].shape) != 2:
        raise ModelError(
            f"speculation needs a classifier, and {units.graph.model_name} does not return one tensor of "
            "samples × classes",
            hint="return the logits alone",
        )
    return leaves[0]


def unit_flops(units: Units) -> Flops:
    by_node = dict(zip((n.name for n in units.graph.nodes), node_flops(units.graph), strict=True))
    found = {}
    for unit in units.units:
        names = [unit.name] if unit.segment is None else [n.name for n in unit.segment.nodes]
        f, i, g = (sum(by_node[name][k] for name in names) for k in range(3))
        wanted = any(name in units.needs for name in unit.inputs)
        found[unit.name] = (f, i if wanted else 0, g if unit.parameters else 0)
    return found


def check_rules(units: Units, inside: frozenset[str], hint: str) -> None:
    """Raise ModelError for the first layer inside whose backward pass cannot be made for some samples only."""
    for unit in units.units:
        if unit.name in inside and not _by_sample(units, unit):
            node = units.graph.by_name[unit.name]
            where = f" ({node.line})" if node.line else ""
            raise ModelError(
                f"layer {node.path or node.name} of kind {node.kind}{where} cannot be speculated", hint=hint
            )


def _by_sample(units: Units, unit: Unit) -> bool:
    if unit.bound is None:
        return False
    if coupled(unit):
        return True
    if unit.rule.rule.kind == "add" and len({units.specs[name].shape for name in unit.inputs}) > 1:
        return False
    return unit.rule.tiling.samples


def cut_region(units: Units, cut: str | int | None) -> Region:
    """The lower part of the network. ``cut``: the module that begins the upper part, or the number of the layer after
    which to cut; None where the operations of the two parts are nearest to equal.

    Raises ModelError for a cut at which not exactly one tensor crosses, and for lower parts that cannot be speculated.
    """
    graph = units.graph
    if cut is None:
        return _balanced(units)
    at = cut_after_layer(graph, cut) if isinstance(cut, int) else cut_at_module(graph, cut)
    region = _region(units, at)
    if region is None:
        crossed = [name for name in crossing(graph, at) if name in units.needs]
        raise ModelError(
            f"{len(crossed)} trained tensors cross the cut before {cut_name(graph, at)}, and speculation predicts the "
            "signal of one",
            hint=f"cut where a single tensor crosses, such as before {_balanced(units).cut}",
        )
    check_rules(units, region.inside, f"cut before it, such as before {_balanced(units).cut}")
    return region


def _region(units: Units, at: int) -> Region | None:
    graph = units.graph
    crossed = [name for name in crossing(graph, at) if name in units.needs]
    if len(crossed) != 1 or crossed[0] not in units.specs:
        return None
    inside = frozenset(
        u.name for u in units.units if u.name in units.active and all(graph.position[n] < at for n in u.outputs)
    )
    whole = all(graph.position[n] < at for u in units.units if u.name in inside for n in _nodes(u))
    return Region(crossed[0], inside, cut_name(graph, at)) if inside and whole else None


def _nodes(unit: Unit) -> tuple[str, ...]:
    return (unit.name,) if unit.segment is None else tuple(n.name for n in unit.segment.nodes)


def _balanced(units: Units) -> Region:
    flops, best = unit_flops(units), None
    total = sum(map(sum, flops.values()))
    for at in allowed_cuts(units.graph):
        region = _region(units, at)
        if region is None or not all(_by_sample(units, u) for u in units.units if u.name in region.inside):
            continue
        off = abs(total - 2 * sum(sum(flops[name]) for name in region.inside))
        if best is None or off < best[0]:
            best = (off, region)
    if best is None:
        raise ModelError(
            f"{units.graph.model_name} cannot be cut for speculation: nowhere does a single trained tensor cross with "
            "layers below it that can all be speculated",
            hint="use strategy pipelined, which cuts anywhere",
        )
    return best[1]


def label_specs(graph: Graph, value: str) -> tuple[int, ...]:
    """The shape of one sample of a value."""
    return graph.by_name[value].outputs[0].shape[1:]
