"""Writes in place: who shares storage with whom, which writes forbid a cut, and how a write is made harmless.

In a captured graph a node that changes its argument *is* the changed value: later readers name the node, so the
dependency is explicit. What remains is storage shared through views.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from convoy.graph.origin import origin_of
from convoy.graph.random import base_name

_MAY_SHARE = frozenset(
    (
        *("view", "reshape", "flatten", "contiguous", "to", "type", "type_as", "float", "half", "bfloat16", "double"),
        *("cuda", "cpu", "detach", "data", "expand", "expand_as", "view_as", "reshape_as", "squeeze", "unsqueeze"),
        *("permute", "transpose", "chunk", "split", "unbind", "getitem", "select", "narrow", "dropout", "unflatten"),
    )
)
"""Calls that return their argument, or a view of it, for some memory formats, types or modes."""

_MAY_SHARE_MODULES = (nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout2d)

_ELEMENTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.SiLU, nn.Mish, nn.Hardtanh, nn.Hardswish),
    *(nn.Hardsigmoid, nn.Threshold),
)
"""Modules that give the same numbers with ``inplace`` on and off and have no state."""

_UNARY_METHODS = frozenset(("relu_", "sigmoid_", "tanh_", "exp_", "neg_", "abs_", "sqrt_"))


class Storages:
    """Groups of nodes whose results may share memory."""

    def __init__(self, graph: fx.Graph, modules: Mapping[str, nn.Module]) -> None:
        self.position = {node: index for index, node in enumerate(graph.nodes)}
        self._root: dict[fx.Node, fx.Node] = {}
        owner: dict[int, fx.Node] = {}
        for node in graph.nodes:
            for tensor in origin_of(node).tensors if "origin" in node.meta else ():
                storage = id(tensor.untyped_storage())
                self._join(owner.setdefault(storage, node), node)
            if _may_share(node, modules) and node.all_input_nodes:
                self._join(node.all_input_nodes[0], node)
        self._members: dict[fx.Node, list[fx.Node]] = {}
        for node in graph.nodes:
            self._members.setdefault(self._find(node), []).append(node)

    def _find(self, node: fx.Node) -> fx.Node:
        while (root := self._root.setdefault(node, node)) is not node:
            node = root
        return node

    def _join(self, one: fx.Node, other: fx.Node) -> None:
        a, b = self._find(one), self._find(other)
        if a is not b:
            first, last = (a, b) if self.position[a] < self.position[b] else (b, a)
            self._root[last] = first

    def members(self, node: fx.Node) -> list[fx.Node]:
        """All nodes that may share memory with ``node``, itself included, in order."""
        return self._members[self._find(node)]

    def exposed(self, write: fx.Node) -> bool:
        """Whether something that existed before ``write`` and shares its storage is read after it under another
        name: then the write has to stay in place, together with all of them."""
        at = self.position[write]
        return any(
            self.position[member] < at and any(self.position[user] > at for user in member.users)
            for changed in write.all_input_nodes
            if changed.name in origin_of(write).mutates
            for member in self.members(changed)
        )

    def _end_of(self, write: fx.Node, changed: fx.Node) -> fx.Node:
        """The last node that has to stay with ``write``. After it every name shows the changed storage and may be
        handed over; but a model input is handed to each stage as it came."""
        members = self.members(changed)
        if members[0].op != "placeholder":
            return write
        users = [user for member in members for user in member.users if user.op != "output"]
        return max((*users, write), key=self.position.__getitem__)

    def glue(self) -> list[tuple[str, str]]:
        """Pairs of nodes between which no cut may fall because of exposed writes."""
        pairs = []
        for node in self.position:
            if node.op in ("placeholder", "output") or not origin_of(node).mutates or not self.exposed(node):
                continue
            for changed in node.all_input_nodes:
                if changed.name in origin_of(node).mutates:
                    pairs.append((self.members(changed)[0].name, self._end_of(node, changed).name))
        return pairs


def _may_share(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    if node.op == "call_module":
        module = modules.get(str(node.target))
        return isinstance(getattr(module, "inner", module), _MAY_SHARE_MODULES)
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in ("T", "mT", "H", "mH", "real", "imag", "data")
    name = node.target if isinstance(node.target, str) else base_name(node.target)
    return node.op in ("call_method", "call_function") and name in _MAY_SHARE


def make_out_of_place(node: fx.Node, module: nn.Module | None, written: list[fx.Node]) -> nn.Module | None:
    """Change ``node`` so that it leaves the arguments in ``written`` as they are.

    Returns a module that has to be called instead of ``module``, or None where the change is in the graph alone:
    a pure activation gets its out-of-place form, everything else works on a clone.
    """
    inplace: Any = node.kwargs.get("inplace")
    if module is not None and isinstance(module, _ELEMENTWISE):
        other = copy.copy(module)
        other.inplace = False
        return other
    if node.op == "call_function" and inplace is True:
        node.update_kwarg("inplace", False)
        return None
    if node.op == "call_method" and node.target in _UNARY_METHODS:
        node.target = str(node.target).removesuffix("_")
        return None
    for argument in written:
        with node.graph.inserting_before(node):
            duplicate = node.graph.call_function(torch.clone, (argument,))
        node.replace_input_with(argument, duplicate)
    return None
