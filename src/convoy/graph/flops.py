"""Operations per node, by the rules where there is one and by simple formulas elsewhere."""

from __future__ import annotations

from math import prod

from torch import fx

from convoy.graph.graph import Graph, Node
from convoy.graph.kinds import CONVOLUTIONS, WEIGHTED
from convoy.graph.rules import bind

_FREE = frozenset(
    (
        *("input", "output", "attribute", "size", "getitem", "flatten", "reshape", "permute", "transpose"),
        *("identity", "detach", "chunk", "split", "cat", "pad"),
    )
)
"""Kinds that move or describe numbers but compute none."""


def forward_flops(graph: Graph) -> tuple[int, ...]:
    """Operations of each node's forward pass for the captured batch, a multiply and an add counted as two."""
    return tuple(flops[0] for flops in node_flops(graph))


def node_flops(graph: Graph) -> tuple[tuple[int, int, int], ...]:
    """For each node the operations of forward, input gradient and weight gradient."""
    by_name = {node.name: node for node in graph.program.graph.nodes}
    return tuple(_of_node(graph, node, by_name[node.name]) for node in graph.nodes)


def _of_node(graph: Graph, node: Node, fx_node: fx.Node) -> tuple[int, int, int]:
    bound = bind(fx_node, graph.program)
    if bound is not None:
        inputs = [spec for name in bound.inputs for spec in graph.by_name[name].outputs[:1]]
        return bound.rule.flops(bound.options, inputs, node.outputs)
    elements = sum(spec.elements for spec in node.outputs)
    if node.kind in WEIGHTED:
        products = 2 * _products(graph, node, elements)
        return products, products, products
    if node.kind == "matmul" and node.inputs:
        inner = graph.by_name[node.inputs[0]].outputs[0].shape[-1]
        return 2 * elements * inner, 4 * elements * inner, 0
    if node.kind in _FREE:
        return 0, 0, 0
    return elements, elements, 0


def _products(graph: Graph, node: Node, elements: int) -> int:
    """Multiplications of a convolution or linear layer: every element of the output (of the input, where it is
    transposed) meets the weights of one channel."""
    weights = [graph.parameters[name] for name in node.parameters]
    weights += [
        graph.parameters[p] for n in node.inputs for p in graph.by_name[n].parameters if _is_attribute(graph, n)
    ]
    weight = max((w for w in weights if w.dim() > 1), key=lambda w: w.dim(), default=None)
    if weight is None:
        return elements
    if node.kind in CONVOLUTIONS and node.kind.startswith("conv_transpose"):
        sources = [n for n in node.inputs if not _is_attribute(graph, n)]
        elements = graph.by_name[sources[0]].outputs[0].elements
    return elements * prod(weight.shape[1:])


def _is_attribute(graph: Graph, name: str) -> bool:
    return graph.by_name[name].kind == "attribute"
