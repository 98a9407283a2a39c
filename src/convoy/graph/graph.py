"""What a model computes, as plain data: nodes, the tensors between them, and what each node costs.

A graph knows nothing of strategies or threads. The nodes stand in an order in which they may be computed; the code
that computes them is the ``torch.fx`` graph in ``program`` whose nodes carry the same names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

from convoy.errors import InternalError

if TYPE_CHECKING:
    import torch
    import torch.fx

    from convoy.graph.signature import Signature
    from convoy.graph.structure import Structure


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape and type of one tensor, batch dimension included as captured."""

    shape: tuple[int, ...]
    dtype: str  # as torch prints it without the prefix: "float32"
    itemsize: int = 4

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * self.itemsize


@dataclass(frozen=True, slots=True)
class Cost:
    """What one node costs for the captured batch. Seconds are for one core unless the measurement says otherwise;
    ``flops`` counts a multiply and an add as two; ``saved_bytes`` is what autograd keeps for the backward pass,
    weights not counted."""

    forward_seconds: float = 0.0
    input_grad_seconds: float = 0.0
    weight_grad_seconds: float = 0.0
    flops: int = 0
    saved_bytes: int = 0

    @property
    def seconds(self) -> float:
        return self.forward_seconds + self.input_grad_seconds + self.weight_grad_seconds


@dataclass(frozen=True, slots=True)
class Node:
    """One layer as the user wrote it, or one functional call.

    ``name`` is unique and equals the fx node's name. ``kind`` names the rule of ``graph/rules`` ("conv2d",
    "batch_norm", "relu", ...) or is "input", "output", "attribute" or "other". ``path`` is the module's path in the
    user's model ("" for a functional call). ``layer`` is the number that the publications give to convolutions and
    fully-connected layers (projection shortcuts do not count), None for everything else; ``is_projection`` marks the
    convolution of a projection shortcut. ``line`` is "file:line" of the user's code, for messages.
    """

    name: str
    kind: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    path: str = ""
    parameters: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()
    layer: int | None = None
    is_projection: bool = False
    line: str = ""
    scope: str = ""  # the module in whose forward the call is written ("" for the model itself)
    cost: Cost | None = None

    @property
    def output_bytes(self) -> int:
        return sum(spec.bytes for spec in self.outputs)


@dataclass(frozen=True)
class Graph:
    """Nodes in computing order, and the fx module that computes them.

    ``program`` shares parameters and buffers with the user's model (the same objects); its random layers are
    replaced by keyed ones. ``parameter_bytes`` and ``parameter_elements`` are by the user's parameter names. ``glued``
    holds pairs (first, last) of node names between which no cut may fall (tied weights, writes through views).
    """

    nodes: tuple[Node, ...]
    program: torch.fx.GraphModule
    model_name: str
    batch_size: int
    parameter_elements: Mapping[str, int] = field(default_factory=dict)
    parameter_bytes: Mapping[str, int] = field(default_factory=dict)
    glued: tuple[tuple[str, str], ...] = ()
    captured_by: str = "fx"  # "fx", "fx with coarse leaves", "export"
    notes: tuple[str, ...] = ()  # what a person should know: leaves that stayed whole, baked conditions
    signature: Signature | None = None  # how a batch becomes values by input name
    output: Structure | None = None  # how the values that the output node names become what the model returns
    derived_weights: tuple[str, ...] = ()  # nodes whose weight is computed in the forward pass (weight_norm ...)
    parameters: Mapping[str, torch.nn.Parameter] = field(default_factory=dict, repr=False)  # the user's own objects
    buffers: Mapping[str, torch.Tensor] = field(default_factory=dict, repr=False)

    @cached_property
    def by_name(self) -> Mapping[str, Node]:
        return {node.name: node for node in self.nodes}

    @cached_property
    def position(self) -> Mapping[str, int]:
        return {node.name: index for index, node in enumerate(self.nodes)}

    @cached_property
    def last_use(self) -> Mapping[str, int]:
        """The position of the last node that reads each value."""
        return {name: index for index, node in enumerate(self.nodes) for name in node.inputs}

    @cached_property
    def layers(self) -> tuple[Node, ...]:
        """The numbered layers in order; ``layers[p - 1]`` is layer p."""
        return tuple(sorted((n for n in self.nodes if n.layer is not None), key=lambda n: n.layer or 0))

    def bind(self, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> dict[str, torch.Tensor]:
        """A batch as values by input name. Raises ``DataError`` when it is built otherwise than the captured one."""
        if self.signature is None:
            raise InternalError("a graph that was not captured cannot take a batch")
        return self.signature.bind(args, kwargs)

    def with_costs(self, costs: Mapping[str, Cost]) -> Graph:
        """The same graph with ``costs`` (by node name) put in."""
        nodes = tuple(replace(n, cost=costs[n.name]) if n.name in costs else n for n in self.nodes)
        return replace(self, nodes=nodes)
