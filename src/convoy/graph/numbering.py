"""Layer numbers as in the publications: convolutions and fully-connected layers in the order in which they run,
without the projections on shortcuts (SYSTEMS 1.1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from convoy.graph.graph import Node
from convoy.graph.kinds import CONVOLUTIONS, WEIGHTED


def projections(nodes: Sequence[Node]) -> Mapping[str, tuple[str, ...]]:
    """The convolutions on shortcuts, each with the weighted layers on the other branch of its block, in order.

    At an addition of two values, each branch reaches back to their common ancestors. A branch with one convolution
    and nothing else that has weights, beside a branch with two or more weighted layers, is a projection.
    """
    found: dict[str, tuple[str, ...]] = {}
    for short, main in _branches(nodes):
        shortcut = _weighted(nodes, short)
        if len(shortcut) == 1 and shortcut[0].kind in CONVOLUTIONS:
            found[shortcut[0].name] = main
    return found


def free_shortcuts(nodes: Sequence[Node]) -> Mapping[str, tuple[str, ...]]:
    """The shortcuts that compute something without weights (pooling, zero padding): the first node of each, with the
    weighted layers on the other branch of its block, in order."""
    found: dict[str, tuple[str, ...]] = {}
    for short, main in _branches(nodes):
        if short and not _weighted(nodes, short):
            first = nodes[(short & -short).bit_length() - 1]
            found[first.name] = main
    return found


def _branches(nodes: Sequence[Node]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """For each branch that an addition joins to another with two or more weighted layers: its own nodes as bits, and
    the names of those layers."""
    bit = {node.name: 1 << index for index, node in enumerate(nodes)}
    behind: dict[str, int] = {}
    for node in nodes:
        mine = bit[node.name]
        for name in node.inputs:
            mine |= behind[name]
        behind[node.name] = mine
        values = [name for name in node.inputs if not _is_attribute(nodes, bit, name)]
        if node.kind != "add" or len(values) != 2:
            continue
        one, other = behind[values[0]], behind[values[1]]
        if not one & other:
            continue
        for short, long in ((one & ~other, other & ~one), (other & ~one, one & ~other)):
            main = _weighted(nodes, long)
            if len(main) >= 2:
                yield short, tuple(layer.name for layer in main)


def number(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """``nodes`` with ``layer`` and ``is_projection`` filled in."""
    shortcuts = projections(nodes)
    numbered, count = [], 0
    for node in nodes:
        if node.name in shortcuts:
            node = replace(node, layer=None, is_projection=True)
        elif node.kind in WEIGHTED:
            count += 1
            node = replace(node, layer=count, is_projection=False)
        numbered.append(node)
    return tuple(numbered)


def _is_attribute(nodes: Sequence[Node], bit: Mapping[str, int], name: str) -> bool:
    return nodes[bit[name].bit_length() - 1].kind == "attribute"


def _weighted(nodes: Sequence[Node], mask: int) -> list[Node]:
    """The layers with weights among the nodes whose bits are set."""
    layers = []
    while mask:
        lowest = mask & -mask
        node = nodes[lowest.bit_length() - 1]
        if node.kind in WEIGHTED:
            layers.append(node)
        mask ^= lowest
    return layers
