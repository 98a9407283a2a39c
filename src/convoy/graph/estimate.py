"""What each node of a graph should cost, without running the model.

Seconds come from operations and bytes (the roofline of Williams et al. 2009): a pass takes as long as the slower of
computing and moving, plus one call. Real kernels fall short of the machine's best, small convolutions most, so the
sums are too small; for a first look, not for choosing cuts by a few percent.
"""

from __future__ import annotations

from math import prod

from convoy.graph.flops import node_flops
from convoy.graph.graph import Cost, Graph, Node
from convoy.graph.kinds import WEIGHTED
from convoy.graph.machine import Machine, measure_machine
from convoy.graph.profile import Profile, SavedTable, first_saved_bytes

_VIEWS = frozenset(("flatten", "reshape", "permute", "transpose", "identity", "getitem", "detach", "chunk", "split"))
_KEEP_INPUTS = WEIGHTED | frozenset(
    (
        *(
            "batch_norm",
            "layer_norm",
            "group_norm",
            "instance_norm",
            "gelu",
            "silu",
            "mish",
            "hardswish",
            "hardsigmoid",
        ),
        *("hardtanh", "relu6", "leaky_relu", "elu", "prelu", "max_pool", "avg_pool", "adaptive_avg_pool"),
        *("adaptive_max_pool", "mul", "matmul", "embedding"),
    )
)
_KEEP_RESULT = frozenset(("leaky_relu", "elu"))
"""Of these, the ones that in place make do with their result; the others then keep a copy of their input."""
_KEEP_OUTPUT = frozenset(("relu", "sigmoid", "tanh", "softmax", "log_softmax"))
_KEEP_NO_INPUT = frozenset(
    ("add", "sub", "cat", "mean", "pad", "interpolate", "dropout", "feature_dropout", "alpha_dropout")
)
_IDLE = frozenset(("input", "output", "attribute", "size"))


def estimate(graph: Graph, machine: Machine | None = None, *, threads: int = 1) -> Profile:
    """A profile from formulas. ``machine``: the constants, measured now (0.2 s) if not given.

    The loss is not in it. Kinds of nodes that are not known count as one operation per element of the output, and as
    keeping their inputs.
    """
    machine = machine or measure_machine(threads=threads)
    saved, flops = estimate_saved(graph), node_flops(graph)
    fresh, trained = first_saved_bytes(saved), _trained(graph)
    costs = {node.name: _cost(graph, node, flops[i], fresh[i], machine, trained) for i, node in enumerate(graph.nodes)}
    return Profile(graph.with_costs(costs), saved, "estimated", threads)


def estimate_saved(graph: Graph) -> SavedTable:
    """What autograd keeps in float32, by kind of node: inputs, output, mask or indices; views share their storage."""
    trained, storage, writing = _trained(graph), _storages(graph), _writing(graph)
    numbers: dict[str, int] = {}
    table = []
    for node in graph.nodes:
        kept: dict[str, int] = {}
        if node.name in trained and node.kind not in _IDLE | _VIEWS:
            if node.kind in _KEEP_OUTPUT:
                kept[storage[node.name]] = graph.by_name[storage[node.name]].output_bytes
            elif node.name in writing and node.kind in _KEEP_INPUTS - _KEEP_RESULT:
                kept[f"{node.name} before"] = node.output_bytes
            elif not _keeps_no_input(node):
                names = [n for n in node.inputs if graph.by_name[n].kind not in ("attribute", "size")]
                kept.update({storage[n]: graph.by_name[storage[n]].output_bytes for n in names})
            kept.update(_besides(graph, node))
        table.append(tuple((numbers.setdefault(name, len(numbers)), size) for name, size in kept.items() if size))
    return tuple(table)


def _keeps_no_input(node: Node) -> bool:
    if node.kind == "adaptive_avg_pool":  # down to one pixel it is a mean
        return all(size == 1 for spec in node.outputs for size in spec.shape[2:])
    return node.kind in _KEEP_NO_INPUT


def _besides(graph: Graph, node: Node) -> dict[str, int]:
    """What is kept besides inputs and output."""
    if node.kind in ("dropout", "alpha_dropout"):
        return {f"{node.name} mask": node.output_bytes}
    if node.kind == "feature_dropout":
        return {f"{node.name} mask": sum(s.itemsize * prod(s.shape[:2]) for s in node.outputs)}
    if node.kind in ("max_pool", "adaptive_max_pool"):
        return {f"{node.name} indices": 8 * node.outputs[0].elements}
    if node.kind == "batch_norm" and (not node.path or graph.program.get_submodule(node.path).training):
        return {f"{node.name} mean and deviation": 2 * 4 * node.outputs[0].shape[1]}
    return {}


def _cost(
    graph: Graph, node: Node, flops: tuple[int, int, int], saved: int, machine: Machine, trained: frozenset[str]
) -> Cost:
    if node.kind in _IDLE:
        return Cost()
    sources = [graph.by_name[name] for name in node.inputs]
    read = sum(source.output_bytes for source in sources if source.kind not in ("attribute", "size"))
    weights = [
        *node.parameters,
        *(name for source in sources if source.kind == "attribute" for name in source.parameters),
    ]
    weight_bytes = sum(graph.parameter_bytes[name] for name in weights)
    moved = 0 if node.kind in _VIEWS else read + node.output_bytes

    def seconds(operations: int, amount: int) -> float:
        return max(operations / machine.flops_per_second, amount / machine.bytes_per_second) + machine.call_seconds

    forward = seconds(flops[0], moved + weight_bytes)
    input_grad = weight_grad = 0.0
    if any(name in trained for name in node.inputs if graph.by_name[name].kind != "attribute"):
        input_grad = seconds(flops[1], moved + (read if moved else 0) + weight_bytes)
    if any(graph.parameters[name].requires_grad for name in weights):
        weight_grad = seconds(flops[2], moved + weight_bytes)
    return Cost(forward, input_grad, weight_grad, flops[0], saved)


def _trained(graph: Graph) -> frozenset[str]:
    """Nodes through which a gradient flows: their own weights, or some before them, are trained."""
    found: set[str] = set()
    for node in graph.nodes:
        if any(graph.parameters[name].requires_grad for name in node.parameters) or found.intersection(node.inputs):
            found.add(node.name)
    return frozenset(found)


def _writing(graph: Graph) -> dict[str, str]:
    """Nodes that change an argument in place, and which."""
    origins = {node.name: node.meta.get("origin") for node in graph.program.graph.nodes}
    return {name: origin.mutates[0] for name, origin in origins.items() if origin is not None and origin.mutates}


def _storages(graph: Graph) -> dict[str, str]:
    """For each node the one whose storage its result lies in: its own, or that of what it views or writes to."""
    writing = _writing(graph)
    home: dict[str, str] = {}
    for node in graph.nodes:
        viewed = node.inputs[0] if node.kind in _VIEWS and node.inputs else node.name
        source = writing.get(node.name, viewed)
        home[node.name] = home.get(source, source)
    return home
