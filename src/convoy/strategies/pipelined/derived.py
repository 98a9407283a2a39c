"""Parameters from which a stage computes a weight in its forward pass: weight_norm, parametrizations, or by hand.

What autograd saves of such a computation belongs together: the computed weight as it was then, and the parameters it
came from. Reading the parameters as they are now beside a weight as it was then would be the gradient of nothing, so
for these the backward pass sees the old version of all (``stash``; the plan says so).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize


def derived_parameters(stage: fx.GraphModule) -> list[nn.Parameter]:
    """The parameters of ``stage`` that weights are computed from, each once."""
    found: dict[int, nn.Parameter] = {}
    sources: dict[fx.Node, list[nn.Parameter]] = {}  # nodes that depend on parameters alone
    for node in stage.graph.nodes:
        if node.op == "get_attr":
            value = _attribute(stage, str(node.target))
            sources[node] = [value] if isinstance(value, nn.Parameter) else []
        elif node.op == "call_module":
            for part in stage.get_submodule(str(node.target)).modules():
                found.update((id(p), p) for p in _of_module(part))
        elif node.all_input_nodes and all(n in sources for n in node.all_input_nodes):
            sources[node] = [p for n in node.all_input_nodes for p in sources[n]]
            found.update((id(p), p) for p in sources[node])
    return list(found.values())


def _of_module(module: nn.Module) -> Iterator[nn.Parameter]:
    if parametrize.is_parametrized(module):
        assert isinstance(module.parametrizations, nn.Module)
        yield from module.parametrizations.parameters()
    own = dict(module.named_parameters(recurse=False))
    for key, value in vars(module).items():  # the older weight_norm and spectral_norm leave the result here
        if isinstance(value, torch.Tensor):
            yield from (p for name, p in own.items() if name.startswith(f"{key}_"))


def _attribute(module: nn.Module, path: str) -> Tensor:
    found: object = module
    for name in path.split("."):
        found = getattr(found, name)
    assert isinstance(found, Tensor)
    return found
