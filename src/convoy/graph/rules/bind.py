"""From a node of a captured program to the rule that computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from convoy.errors import InternalError
from convoy.graph.random import Keyed
from convoy.graph.rules.calls import Call, read_call
from convoy.graph.rules.modules import options_of
from convoy.graph.rules.rule import Outcome, Rule, Saved, Tiling
from convoy.graph.rules.table import RULES


@dataclass(frozen=True, slots=True)
class BoundRule:
    """The rule of one node, with the node's options and the program's own parameters (the same objects).

    ``inputs`` names the nodes whose results ``forward`` takes. Options were read when the node was bound: bind again
    after ``train()`` or ``eval()``. ``channels`` = (lo, hi) computes that tile only, from whole arguments (see
    ``Rule.narrow_forward`` and so on). Nothing is recorded by autograd.
    """

    node: str
    rule: Rule[Any]
    options: Any
    inputs: tuple[str, ...]
    parameters: Mapping[str, Tensor | None]
    draw: Callable[[Tensor], Tensor] | None = None

    @property
    def trainable(self) -> tuple[str, ...]:
        """Local names of the parameters that want a gradient."""
        return tuple(name for name, t in self.parameters.items() if t is not None and t.requires_grad)

    @property
    def tiling(self) -> Tiling:
        return self.rule.tiling(self.options)

    def mask(self, x: Tensor) -> Tensor:
        """The mask of a keyed dropout for its whole input ``x``, under the key in force (``keyed``)."""
        if self.draw is None:
            raise InternalError(f"{self.node} draws no mask")
        with torch.no_grad():
            return self.draw(x)

    def forward(self, inputs: Sequence[Tensor], channels: tuple[int, int] | None = None) -> tuple[Tensor, Saved]:
        """Of a keyed dropout the mask is drawn here, unless it is given as second input (as it has to be where x is
        a slice of the batch)."""
        with torch.no_grad():
            if self.draw is not None and len(inputs) == 1:
                inputs = (inputs[0], self.draw(inputs[0]))
            options, parameters = self.options, self.parameters
            if channels is not None:
                options, parameters, inputs = self.rule.narrow_forward(options, parameters, inputs, *channels)
            return self.rule.forward(options, parameters, inputs)

    def input_grad(
        self, saved: Saved, grad: Tensor, channels: tuple[int, int] | None = None
    ) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            options, parameters = self.options, self.parameters
            if channels is not None:
                narrowed = self.rule.narrow_input_grad(options, parameters, saved, grad, *channels)
                options, parameters, saved, grad = narrowed
            return self.rule.input_grad(options, parameters, saved, grad)

    def weight_grad(self, saved: Saved, grad: Tensor, channels: tuple[int, int] | None = None) -> dict[str, Tensor]:
        with torch.no_grad():
            options, parameters = self.options, self.parameters
            if channels is not None:
                narrowed = self.rule.narrow_weight_grad(options, parameters, saved, grad, *channels)
                options, parameters, saved, grad = narrowed
            return self.rule.weight_grad(options, parameters, saved, grad)

    def samples(self, saved: Saved, lo: int, hi: int) -> Saved:
        """What is saved of samples lo..hi."""
        return self.rule.narrow_samples(self.options, saved, lo, hi)

    def outcome(self, saved: Saved) -> Outcome:
        with torch.no_grad():
            return self.rule.outcome(self.options, saved)

    def input_grad_from(self, outcome: Outcome, grad: Tensor) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            return self.rule.input_grad_from(self.options, outcome, grad)


def bind(node: fx.Node, program: fx.GraphModule, compute: torch.dtype | None = None) -> BoundRule | None:
    """The rule that computes ``node``, or None where the node has to run whole under autograd.

    ``compute``: the type in which convolutions and linear layers compute, as under autocast. Rules compute out of
    place; a write in place that others see through another name has no rule.
    """
    if node.op not in ("call_module", "call_function", "call_method") or _writes_visibly(node, program):
        return None
    draw = None
    if node.op == "call_module":
        module = program.get_submodule(str(node.target))
        if isinstance(module, Keyed):
            call = _keyed(node, module, program)
            draw = _drawing(node, module) if call is not None and call.options.active else None
        else:
            call = _of_module(node, module)
    else:
        call = read_call(node.target, node.args, node.kwargs, program)
    if call is None:
        return None
    options = call.options
    if compute is not None and call.kind in ("conv2d", "linear"):
        options = replace(options, compute=compute)
    return BoundRule(node.name, RULES[call.kind], options, tuple(n.name for n in call.inputs), call.parameters, draw)


def _of_module(node: fx.Node, module: nn.Module) -> Call | None:
    arguments = (*node.args, *node.kwargs.values())
    found = options_of(module)
    if found is None or len(arguments) != 1 or not isinstance(arguments[0], fx.Node) or arguments[0].op == "get_attr":
        return None
    owned: dict[str, Tensor | None] = {**module._parameters}
    if not isinstance(module, nn.modules.batchnorm._BatchNorm):
        owned.update(module._buffers)
    elif not module.training or module.track_running_stats:
        owned.update(module._buffers)  # a BatchNorm that does not track takes no part in its buffers while training
    return Call(*found, (arguments[0],), owned)


def _keyed(node: fx.Node, module: Keyed, program: fx.GraphModule) -> Call | None:
    """Plain dropout, as a layer or as a call; other random layers have no rule."""
    if isinstance(module.inner, nn.Module):
        call = _of_module(node, module.inner)
    else:
        function = getattr(module.inner, "name", module.inner)  # a method is kept by its name
        call = read_call(function, node.args, node.kwargs, program)
    return call if call is not None and call.kind == "dropout" else None


def _drawing(node: fx.Node, module: Keyed) -> Callable[[Tensor], Tensor]:
    """The mask is what the layer makes of ones: x · noise with x = 1."""
    rest, named = node.args[1:], {k: v for k, v in node.kwargs.items() if k != "input"}

    def draw(x: Tensor) -> Tensor:
        mask: Tensor = module(torch.ones_like(x), *rest, **named)
        return mask

    return draw


def _writes_visibly(node: fx.Node, program: fx.GraphModule) -> bool:
    """Whether ``node`` changes an argument that is read again by its old name, or through a view."""
    if "exposed" in node.meta:
        return bool(node.meta["exposed"])
    if node.op == "call_module":
        inplace = bool(getattr(program.get_submodule(str(node.target)), "inplace", False))
    else:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        inplace = node.kwargs.get("inplace") is True or name == "iadd" or (name.endswith("_") and name[:2] != "__")
        inplace = inplace or name == "__iadd__"
    return inplace and any(user is not node for argument in node.all_input_nodes[:1] for user in argument.users)
