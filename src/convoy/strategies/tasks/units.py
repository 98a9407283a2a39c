"""A captured model as units: nodes with a rule, and stretches that run whole under autograd.

A unit takes named values and makes named values (the names are those of the nodes). Nodes that share memory with an
exposed write in place, and calls that return several tensors, are one unit with those who use them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, fx, nn

from convoy.graph.graph import Graph, TensorSpec
from convoy.graph.origin import origin_of
from convoy.graph.rules import BoundRule, bind
from convoy.graph.split import Segment, part


@dataclass(frozen=True)
class Unit:
    """``inputs`` in the order of the rule's (or segment's) arguments, a name perhaps twice. ``parameters``: those that
    are trained; with a rule ``local`` are their local names. ``buffers`` are changed by the forward pass."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...] = ()
    buffers: tuple[Tensor, ...] = ()
    bound: BoundRule | None = None
    local: tuple[str, ...] = ()
    segment: Segment | None = None

    @property
    def rule(self) -> BoundRule:
        assert self.bound is not None
        return self.bound


@dataclass(frozen=True)
class Units:
    """Units in computing order. ``leaves``: the values that the model returns. ``specs``: shapes by value name.

    ``needs``: values whose gradient is wanted. ``active``: names of units through which a gradient flows back, to their
    inputs or to their weights.
    """

    graph: Graph
    units: tuple[Unit, ...]
    leaves: tuple[str, ...]
    needs: frozenset[str]
    active: frozenset[str]

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        return {n.name: n.outputs[0] for n in self.graph.nodes if len(n.outputs) == 1}

    @property
    def without_rule(self) -> tuple[str, ...]:
        return tuple(node.name for u in self.units if u.segment is not None for node in u.segment.nodes)


def units_of(graph: Graph, compute: torch.dtype | None = None) -> Units:
    """``compute``: the type in which convolutions and linear layers compute, as under autocast."""
    nodes = {node.name: node for node in graph.program.graph.nodes}
    leaves = tuple(dict.fromkeys(graph.nodes[-1].inputs))
    copied = _copied(graph, nodes, leaves)
    bound = {name: bind(node, graph.program, compute) for name, node in nodes.items() if name not in copied}
    drafts: list[tuple[str, ...]] = []
    for run in _runs(graph, nodes):
        inside = tuple(n for n in run if n not in copied and nodes[n].op not in ("placeholder", "output"))
        if inside:
            drafts.append(inside)
    made: list[Unit] = []
    wanted = set(leaves)
    for names in reversed(drafts):
        rule = bound[names[0]] if len(names) == 1 else None
        unit = _with_rule(rule) if rule is not None else _whole(graph, nodes, names, copied, wanted)
        if unit is not None and (unit.buffers or wanted.intersection(unit.outputs)):
            made.append(unit)
            wanted.update(unit.inputs)
    made.reverse()
    needs = _needs(graph, made)
    return Units(graph, tuple(made), leaves, needs, _active(made, leaves, needs))


def _copied(graph: Graph, nodes: Mapping[str, fx.Node], leaves: Sequence[str]) -> frozenset[str]:
    """Nodes that each unit computes for itself: attributes, and numbers such as sizes."""
    found = set()
    for name, node in nodes.items():
        if name in leaves or node.op in ("placeholder", "output"):
            continue
        number = not graph.by_name[name].outputs and not origin_of(node).mutates
        if node.op == "get_attr" or (number and node.op != "call_module"):
            found.add(name)
    return frozenset(found)


def _runs(graph: Graph, nodes: Mapping[str, fx.Node]) -> list[list[str]]:
    """All nodes in order, with those that have to stay together in one list."""
    names = list(nodes)
    place = {name: i for i, name in enumerate(names)}
    ends = list(range(len(names)))  # the last node that has to be in the unit of this one

    def tie(first: str, last: str) -> None:
        ends[place[first]] = max(ends[place[first]], place[last])

    for name, node in nodes.items():
        if node.op in ("placeholder", "output"):
            continue
        users = [user.name for user in node.users if user.op != "output"]
        if len(graph.by_name[name].outputs) > 1 and users:
            tie(name, max(users, key=place.__getitem__))
        if node.meta["exposed"]:
            for changed in node.all_input_nodes:
                if changed.name in origin_of(node).mutates:
                    first = str(changed.meta["storage"])
                    tie(first, name)
                    for one, last in graph.glued:
                        if one == first:
                            tie(first, last)
    runs: list[list[str]] = []
    end = -1
    for i, name in enumerate(names):
        if i > end:
            runs.append([])
        runs[-1].append(name)
        end = max(end, ends[i])
    return runs


def _with_rule(bound: BoundRule) -> Unit:
    local = bound.trainable
    parameters = tuple(p for name in local if isinstance(p := bound.parameters[name], nn.Parameter))
    moves = bound.rule.kind == "batch_norm" and bound.options.batch_statistics
    buffers = (t for t in bound.parameters.values() if t is not None and not isinstance(t, nn.Parameter))
    return Unit(
        bound.node, bound.inputs, (bound.node,), parameters, tuple(buffers) if moves else (), bound=bound, local=local
    )


def _whole(
    graph: Graph, nodes: Mapping[str, fx.Node], names: Sequence[str], copied: frozenset[str], wanted: Iterable[str]
) -> Unit | None:
    """One unit of several nodes, with what it computes for itself."""
    outputs = tuple(name for name in names if name in set(wanted))
    mutates = any(origin_of(nodes[n]).mutates or graph.by_name[n].buffers for n in names)
    if not outputs and not mutates:
        return None
    own, pending = set(names), list(names)
    while pending:
        for argument in nodes[pending.pop()].all_input_nodes:
            if argument.name in copied and argument.name not in own:
                own.add(argument.name)
                pending.append(argument.name)
    segment = part(graph, [name for name in nodes if name in own], outputs)
    trained = tuple(p for p in segment.parameters.values() if p.requires_grad)
    return Unit(names[0], segment.inputs, outputs, trained, tuple(segment.buffers.values()), segment=segment)


def _needs(graph: Graph, units: Iterable[Unit]) -> frozenset[str]:
    needs: set[str] = set()
    for unit in units:
        if unit.parameters or needs.intersection(unit.inputs):
            needs.update(name for name in unit.outputs if _floating(graph, name))
    return frozenset(needs)


def _floating(graph: Graph, name: str) -> bool:
    specs = graph.by_name[name].outputs
    return len(specs) == 1 and specs[0].dtype.startswith(("float", "bfloat"))


def _active(units: Sequence[Unit], leaves: Iterable[str], needs: frozenset[str]) -> frozenset[str]:
    reached, active = needs.intersection(leaves), set()
    for unit in reversed(units):
        if reached.intersection(unit.outputs):
            active.add(unit.name)
            reached |= needs.intersection(unit.inputs)
    return frozenset(active)


def owners(units: Iterable[Unit], of: str) -> dict[str, str]:
    """Unit name → the name under which its ``of`` ("parameters" or "buffers") stand: that of the first unit that has
    one of them. Units without any are left out."""
    home: dict[int, str] = {}
    found: dict[str, str] = {}
    merged: dict[str, str] = {}
    for unit in units:
        keys = [id(t) for t in getattr(unit, of)]
        if not keys:
            continue
        before = {_last(merged, home[k]) for k in keys if k in home}
        names = [u for u in found if _last(merged, found[u]) in before]
        mine = _last(merged, found[names[0]]) if names else unit.name
        for other in before - {mine}:
            merged[other] = mine
        home.update(dict.fromkeys(keys, mine))
        found[unit.name] = mine
    return {name: _last(merged, mine) for name, mine in found.items()}


def _last(merged: Mapping[str, str], name: str) -> str:
    while name in merged:
        name = merged[name]
    return name
