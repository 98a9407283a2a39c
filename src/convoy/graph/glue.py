"""Which nodes belong together: pairs (first, last) between which no cut may fall."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import fx

from convoy.graph.inplace import Storages
from convoy.graph.origin import origin_of


def glue(graph: fx.Graph, state: Mapping[str, Iterable[str]], storages: Storages) -> tuple[tuple[str, str], ...]:
    """All pairs, without repetitions.

    ``state`` gives, by node name, the canonical names of the parameters and buffers that a node reads; a constant
    is no state. Only tensors may cross a cut, so whatever has another result (a tuple, a size) or stands for a
    parameter, or is computed from parameters alone, stays with those who use it.
    """
    pairs: dict[tuple[str, str], None] = {}
    seen: dict[str, str] = {}
    weights = {node.name for node in graph.nodes if node.op == "get_attr"}
    position = storages.position
    for node in graph.nodes:
        for name in state.get(node.name, ()):
            if name in seen:
                pairs[seen[name], node.name] = None
            else:
                seen[name] = node.name
        if node.op in ("placeholder", "output"):
            continue
        inputs = node.all_input_nodes
        if node.name in weights or (inputs and all(argument.name in weights for argument in inputs)):
            weights.add(node.name)
        if node.op == "get_attr" or node.name in weights or len(origin_of(node).tensors) != 1:
            users = [user for user in node.users if user.op != "output"]
            if users:
                pairs[node.name, max(users, key=position.__getitem__).name] = None
    pairs.update(dict.fromkeys(storages.glue()))
    order = {node.name: index for node, index in position.items()}
    return tuple(sorted(pairs, key=lambda pair: (order[pair[0]], order[pair[1]])))
