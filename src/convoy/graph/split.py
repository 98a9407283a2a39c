"""Cutting a graph into stages, at any place where only tensors cross.

A cut is a position in ``graph.nodes``: the next stage starts with the node there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn

from convoy.errors import ModelError
from convoy.graph.graph import Graph, Node
from convoy.graph.inplace import make_out_of_place
from convoy.graph.numbering import free_shortcuts, projections
from convoy.graph.origin import origin_of
from convoy.graph.wrap import Rebuild

_SHOWN = 8
"""So many modules are named where no name is near."""


@dataclass(frozen=True)
class Segment:
    """One stage. ``module(*values)`` takes the values named in ``inputs`` (model inputs or values of earlier
    stages) and returns a tuple of those named in ``outputs``; the last stage returns what the model returns, and
    its ``outputs`` is empty. ``parameters`` and ``buffers`` are the user's own objects by the user's names."""

    module: fx.GraphModule
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    parameters: Mapping[str, nn.Parameter] = field(default_factory=dict)
    buffers: Mapping[str, Tensor] = field(default_factory=dict)


def allowed_cuts(graph: Graph) -> list[int]:
    """All positions where a cut may fall, in order: both sides compute something, and no glued pair is parted."""
    computing = [i for i, n in enumerate(graph.nodes) if n.kind not in ("input", "attribute", "output")]
    if not computing:
        return []
    banned = [0] * (len(graph.nodes) + 1)
    for first, last in graph.glued:
        banned[graph.position[first] + 1] += 1
        banned[graph.position[last] + 1] -= 1
    cuts, depth = [], 0
    for position in range(computing[-1] + 1):
        depth += banned[position]
        if position > computing[0] and depth == 0:
            cuts.append(position)
    return cuts


def crossing(graph: Graph, position: int) -> tuple[str, ...]:
    """Names of the values alive across a cut at ``position``: made before it, read at or after it. Model inputs do
    not count, since every stage can be given them."""
    return tuple(
        node.name
        for node in graph.nodes[:position]
        if node.kind != "input" and graph.last_use.get(node.name, -1) >= position
    )


def cut_after_layer(graph: Graph, layer: int) -> int:
    """The position of the cut after numbered layer ``layer`` (1 is the first): just before the first node of the
    next layer, or before the shortcut of the block that starts there (a projection, or one that computes without
    weights) if that runs first. What follows the layer
    (BatchNorm, ReLU, addition, pooling) stays with it. Raises ``ModelError`` where there is no such cut."""
    layers = graph.layers
    if not 1 <= layer < len(layers):
        raise ModelError(
            f"there is no cut after layer {layer}: {graph.model_name} has layers 1 to {len(layers)}",
            hint=_layer_hint(len(layers)),
        )
    following = layers[layer]
    starts = [graph.position[following.name]]
    for shortcut, main in (*projections(graph.nodes).items(), *free_shortcuts(graph.nodes).items()):
        if main[0] == following.name:
            starts.append(graph.position[shortcut])
    return _checked(graph, _with_weights(graph, min(starts)), f"after layer {layer}")


def cut_at_module(graph: Graph, path: str) -> int:
    """The position of the first node of the module ``path``: the next stage starts with it. Raises ``ModelError``
    with similar names where the model has no such module, and where no cut may fall there. A ``cut_name`` is
    understood too."""
    place = _place_of(graph, path)
    if place is not None:
        return _checked(graph, place, f"before {path!r}")
    raise ModelError(f"{graph.model_name} runs no module {path!r}", hint=_module_hint(path, _module_paths(graph)))


def cut_name(graph: Graph, position: int) -> str:
    """What ``cut_at_module`` understands as the cut at ``position``: the path of the module that begins there, or
    else the name of the node, or else (a module is called so) "#" and the node's number."""
    node = graph.nodes[position]
    for name in (node.path, node.name):
        if name and _place_of(graph, name) == position:
            return name
    return f"#{position}"


def _place_of(graph: Graph, name: str) -> int | None:
    """Where the first node of the module ``name``, or else the node of that name or "#number", stands."""
    for position, node in enumerate(graph.nodes):
        if node.kind in ("input", "output"):
            continue
        if any(where == name or where.startswith(f"{name}.") for where in (node.path, node.scope)):
            return position
    if name.startswith("#") and name[1:].isdecimal() and int(name[1:]) < len(graph.nodes):
        return int(name[1:])
    return graph.position.get(name)


def split(graph: Graph, cuts: Sequence[int]) -> tuple[Segment, ...]:
    """The stages between ``cuts`` (ascending positions); no cuts give one stage, the whole model.

    The stages share modules and parameters with ``graph.program``. A write in place stays as the user wrote it,
    except where it would reach a value that belongs to another stage. Raises ``ModelError`` for a cut where none
    may fall.
    """
    cuts = list(cuts)
    if any(a >= b for a, b in pairwise(cuts)):
        raise ModelError(f"cuts have to ascend, but are {cuts}")
    for cut in cuts:
        _checked(graph, cut, f"at position {cut}")
    fx_nodes = {node.name: node for node in graph.program.graph.nodes}
    modules = dict(graph.program.named_modules(remove_duplicate=False))
    bounds = [0, *cuts, len(graph.nodes)]
    segments = []
    for start, end in pairwise(bounds):
        nodes = tuple(n for n in graph.nodes[start:end] if n.kind not in ("input", "output"))
        inside = {n.name for n in nodes}
        final = end == len(graph.nodes)
        read = [name for n in nodes for name in n.inputs] + (list(graph.nodes[-1].inputs) if final else [])
        inputs = tuple(dict.fromkeys(name for name in read if name not in inside))
        outputs = () if final else tuple(n.name for n in nodes if graph.last_use.get(n.name, -1) >= end)
        builder = _SegmentBuilder(fx_nodes, modules, inputs, graph)
        module = builder.build([n.name for n in nodes], outputs, final)
        parameters = {name: graph.parameters[name] for n in nodes for name in n.parameters}
        buffers = {name: graph.buffers[name] for n in nodes for name in n.buffers}
        segments.append(Segment(module, inputs, outputs, nodes, parameters, buffers))
    return tuple(segments)


def part(graph: Graph, names: Sequence[str], outputs: Sequence[str]) -> Segment:
    """The nodes in ``names`` (in the graph's order) as a segment that returns ``outputs``, wherever they stand.

    Unlike in ``split`` nothing says that only tensors cross its border: values that are none pass too. Writes in
    place to what came from outside are made harmless; ``names`` has to hold all that share memory with what an
    exposed write changes.
    """
    fx_nodes = {node.name: node for node in graph.program.graph.nodes}
    modules = dict(graph.program.named_modules(remove_duplicate=False))
    nodes = tuple(graph.by_name[name] for name in names)
    inside = set(names)
    inputs = tuple(dict.fromkeys(name for n in nodes for name in n.inputs if name not in inside))
    module = _SegmentBuilder(fx_nodes, modules, inputs, graph).build(names, tuple(outputs), False)
    parameters = {name: graph.parameters[name] for n in nodes for name in n.parameters}
    buffers = {name: graph.buffers[name] for n in nodes for name in n.buffers}
    return Segment(module, inputs, tuple(outputs), nodes, parameters, buffers)


class _SegmentBuilder:
    """Copies the nodes of one stage into a graph of their own. Modules get flat names: one look-up per call."""

    def __init__(
        self, fx_nodes: Mapping[str, fx.Node], modules: Mapping[str, nn.Module], inputs: tuple[str, ...], graph: Graph
    ) -> None:
        self._fx_nodes, self._modules, self._inputs, self._whole = fx_nodes, modules, inputs, graph
        self._graph = fx.Graph()
        self._root: dict[str, Any] = {}
        self._made: dict[str, fx.Node] = {}
        # Storage that belongs to the neighbours, by the name of its group.
        self._foreign = {fx_nodes[name].meta["storage"] for name in inputs}

    def build(self, names: Sequence[str], outputs: tuple[str, ...], final: bool) -> fx.GraphModule:
        for name in self._inputs:
            placeholder = self._graph.placeholder(name)
            placeholder.meta.update(self._fx_nodes[name].meta)
            self._made[name] = placeholder
        self._shield(names)
        for name in names:
            self._copy(self._fx_nodes[name])
        if final:
            self._return_whole()
        else:
            self._graph.output(tuple(self._made[name] for name in outputs))
        return fx.GraphModule(self._root, self._graph, "Stage")

    def _writes_out(self, node: fx.Node) -> bool:
        """Whether ``node`` changes storage that came from another stage."""
        written = [a for a in node.all_input_nodes if a.name in origin_of(node).mutates]
        return any(argument.meta["storage"] in self._foreign for argument in written)

    def _shield(self, names: Sequence[str]) -> None:
        """Clone inputs that are changed through views: there the write has to be seen through every view."""
        changed = {
            argument.meta["storage"]
            for node in (self._fx_nodes[name] for name in names)
            if node.meta["exposed"] and self._writes_out(node)
            for argument in node.all_input_nodes
            if argument.name in origin_of(node).mutates
        }
        for name in self._inputs:
            if self._made[name].meta["storage"] in changed:
                duplicate = self._graph.call_function(torch.clone, (self._made[name],))
                duplicate.meta.update(self._made[name].meta)
                self._made[name] = duplicate
        self._foreign -= changed

    def _copy(self, node: fx.Node) -> None:
        duplicate = self._graph.node_copy(node, lambda argument: self._made[argument.name])
        self._made[node.name] = duplicate
        module: nn.Module | None = None
        if node.op == "call_module":
            module = self._modules[str(node.target)]
            duplicate.target = node.name
        elif node.op == "get_attr":
            self._root[str(node.target)] = _attribute(self._whole.program, str(node.target))
        if origin_of(node).mutates and self._writes_out(node):
            pairs = zip(node.all_input_nodes, duplicate.all_input_nodes, strict=True)
            written = [copied for argument, copied in pairs if argument.name in origin_of(node).mutates]
            module = make_out_of_place(duplicate, module, written) or module
        if module is not None:
            self._root[node.name] = module

    def _return_whole(self) -> None:
        output = self._fx_nodes[self._whole.nodes[-1].name]
        leaves: Any = fx.map_arg(output.args[0], lambda argument: self._made[argument.name])
        structure = self._whole.output
        if structure is None or structure.kind == "leaf":
            self._graph.output(leaves[0] if structure is not None else leaves)
            return
        self._root["_rebuild"] = Rebuild(structure)
        self._graph.output(self._graph.call_module("_rebuild", tuple(leaves)))


def _with_weights(graph: Graph, position: int) -> int:
    """``position`` moved before what only reads or prepares weights and sizes for the node there."""
    idle: set[str] = set()
    for node in graph.nodes[:position]:
        if node.kind in ("attribute", "size") or (node.inputs and all(name in idle for name in node.inputs)):
            idle.add(node.name)
    allowed = set(allowed_cuts(graph))
    while position not in allowed and graph.nodes[position - 1].name in idle:
        position -= 1
    return position


def _checked(graph: Graph, position: int, where: str) -> int:
    allowed = allowed_cuts(graph)
    if position in allowed:
        return position
    reason = "a stage would be left without work"
    for first, last in graph.glued:
        if graph.position[first] < position <= graph.position[last]:
            reason = f"{first} to {last} stay together, for they share weights, memory or a value that is no tensor"
    raise ModelError(f"no cut can fall {where}: {reason}", hint=_nearest(graph, allowed, position))


def _nearest(graph: Graph, allowed: Sequence[int], position: int) -> str:
    if not allowed:
        return f"{graph.model_name} cannot be cut anywhere; train it with one stage"
    near = min(allowed, key=lambda cut: abs(cut - position))
    return f"the nearest place is before {graph.nodes[near].path or graph.nodes[near].name}"


def _layer_hint(count: int) -> str:
    if count < 2:
        return "it has no two layers to part"
    return f"layers are numbered 1 to {count}, and the last place for a cut is after layer {count - 1}"


def _module_hint(path: str, known: Sequence[str]) -> str:
    """Near names, or else the first modules in the order in which they run."""
    close = get_close_matches(path, known, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(map(repr, close)) + "?"
    if not known:
        return "it has no named modules; give the number of a layer"
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    return "the modules are " + ", ".join(map(repr, known[:_SHOWN])) + more


def _module_paths(graph: Graph) -> list[str]:
    """In the order in which they run."""
    paths: dict[str, None] = {}
    for node in graph.nodes:
        for whole in (node.path, node.scope):
            parts = whole.split(".") if whole else []
            paths.update(dict.fromkeys(".".join(parts[: i + 1]) for i in range(len(parts))))
    return list(paths)


def _attribute(program: nn.Module, path: str) -> Any:
    found: Any = program
    for name in path.split("."):
        found = getattr(found, name)
    return found
