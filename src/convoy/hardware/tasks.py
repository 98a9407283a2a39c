"""The work of one training step, as tasks for the host and for units in memory, with operations and elements moved.

A step has three phases: forward, feature-map gradient (``input_grad``) and weight gradient. CONV tasks (convolutions
and linear layers) are the host's. Non-CONV tasks (normalisation, activations, pooling, additions) are the units', as
kernels of ``pim``; what has no kernel stays with the host. The loss and the update of the weights are in no task.

Every CONV task begins a *segment*. A non-CONV task belongs to the segment of the last CONV task on which its data
depend: inside it, it can be carried out group by group of channels, as those become ready. ``fresh`` is the share of
its channels that come from there; the others are ready when the segment begins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil, prod
from typing import Any, Literal

from convoy.graph.flops import node_flops
from convoy.graph.graph import Graph, Node
from convoy.graph.kinds import WEIGHTED
from convoy.graph.rules import bind
from convoy.hardware.pim.kernels import KERNELS, Kernel, pooling

Phase = Literal["forward", "input_grad", "weight_grad"]
LANE_BLOCK = 16  # channels are laid out in blocks of so many lanes

_FREE = frozenset(
    ("flatten", "reshape", "identity", "detach", "getitem", "size", "chunk", "split", "permute", "transpose")
)
_WITH_RELU = frozenset(("batch_norm", "add"))
_IGNORED = frozenset(("attribute", "output"))


@dataclass(frozen=True, slots=True)
class HostTask:
    """One CONV task, or what has no kernel. Elements are of the whole batch; ``reads`` are feature maps or gradients,
    ``weights`` are read too (written in the weight gradient phase). ``channels``: of what it writes, 1 where that
    cannot be cut into groups. ``own_inputs``: a group of output channels needs only its own inputs (depthwise)."""

    name: str
    kind: str
    phase: Phase
    flops: int
    reads: int
    weights: int
    writes: int
    channels: int
    own_inputs: bool = False
    part: float = 1.0  # of the task whose key it has
    origin: str = ""

    @property
    def key(self) -> str:
        """By which times of the task are known; parts of a task have its key."""
        moved = f"{self.reads} {self.weights} {self.writes}"
        return self.origin or f"{self.kind} {self.phase} {self.flops} operations, elements {moved}"


@dataclass(frozen=True, slots=True)
class UnitTask:
    """One non-CONV task: ``kernels`` one after the other, each with its elements (whole batch, channels padded to full
    blocks of lanes). ``host_elements``: what a host that carries it out itself moves, reading and writing."""

    name: str
    kind: str
    phase: Phase
    kernels: tuple[tuple[Kernel, int], ...]
    host_elements: int
    channels: int
    fresh: float


@dataclass(slots=True)
class Segment:
    """CONV tasks of one layer and phase, and the non-CONV tasks that can be carried out inside."""

    name: str
    phase: Phase
    host: list[HostTask] = field(default_factory=list)
    units: list[UnitTask] = field(default_factory=list)


@dataclass(frozen=True)
class Step:
    """All segments of a training step in order; ``forward`` of them are of the forward phase."""

    model: str
    batch_size: int
    segments: tuple[Segment, ...]
    forward: int
    notes: tuple[str, ...] = ()

    @property
    def flops(self) -> int:
        return sum(task.flops for segment in self.segments for task in segment.host)


@dataclass(frozen=True, slots=True)
class _Ready:
    """From which segment on something is there (-1: from the beginning), and which share of it comes from there."""

    segment: int = -1
    fresh: float = 0.0


def training_step(graph: Graph) -> Step:
    """The tasks of one step of ``graph``, for the batch that it was captured with."""
    return _Builder(graph).build()


class _Builder:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        fx_nodes = {node.name: node for node in graph.program.graph.nodes}
        self.bound = {node.name: bind(fx_nodes[node.name], graph.program) for node in graph.nodes}
        self.flops = {node.name: flops for node, flops in zip(graph.nodes, node_flops(graph), strict=True)}
        self.segments: list[Segment] = []
        self.early: list[UnitTask] = []
        self.notes: dict[str, None] = {}
        self.trained: set[str] = set()
        self.consumers: dict[str, list[Node]] = {node.name: [] for node in graph.nodes}
        for node in graph.nodes:
            if self.trained.intersection(node.inputs) or any(
                graph.parameters[p].requires_grad for p in node.parameters
            ):
                self.trained.add(node.name)
            for name in node.inputs:
                self.consumers[name].append(node)

    def build(self) -> Step:
        ready: dict[str, _Ready] = {}
        for node in self.graph.nodes:
            ready[node.name] = self._forward(node, ready)
        forward = len(self.segments)
        grads: dict[str, list[_Ready]] = {name: [] for name in self.consumers}
        for node in reversed(self.graph.nodes):
            self._backward(node, grads)
        model, batch = self.graph.model_name, self.graph.batch_size
        return Step(model, batch, tuple(self.segments), forward, tuple(self.notes))

    # --- forward -----------------------------------------------------------------------------------------------------

    def _forward(self, node: Node, ready: Mapping[str, _Ready]) -> _Ready:
        sources = self._sources(node)
        before = [ready[source.name] for source in sources]
        if node.kind in _IGNORED or node.kind == "input" or not node.outputs:
            return _Ready()
        if node.kind in _FREE:
            return _latest(before)
        if node.kind in WEIGHTED:
            flops = self.flops[node.name][0]
            task = HostTask(
                _title(node), node.kind, "forward", flops, _elements(sources), self._weights(node), _size(node),
                _channels(node), self._depthwise(node),
            )  # fmt: skip
            return self._open(Segment(_title(node), "forward", [task]))
        kernels = self._kernels(node, sources)
        if kernels is None:
            return self._on_host(node, "forward", _elements(sources), _size(node), self.flops[node.name][0])
        at = _latest(before)
        if node.kind == "cat":
            widths = [_channels(source) for source in sources]
            new = sum(w * r.fresh for w, r in zip(widths, before, strict=True) if r.segment == at.segment)
            at = _Ready(at.segment, new / sum(widths))
        if node.kind == "relu" and self._fused(node):
            return at
        moved = self._forward_elements(node, sources)
        self._put(UnitTask(_title(node), node.kind, "forward", kernels, moved, _channels(node), at.fresh), at)
        return at

    def _kernels(self, node: Node, sources: list[Node]) -> tuple[tuple[Kernel, int], ...] | None:
        """What the units do in the forward pass; None where they have no kernel."""
        size = _padded(node)
        bound = self.bound[node.name]
        if node.kind == "batch_norm":
            apply = KERNELS["bn_relu" if self._relu_after(node) is not None else "bn"]
            if bound is not None and not bound.options.batch_statistics:
                return ((apply, size),)
            return ((KERNELS["bn_statistics"], size), (apply, size))
        simple = {"relu": "relu", "relu6": "relu6", "hardtanh": "relu6", "add": "add", "sub": "add", "mul": "mul"}
        simple |= {"cat": "copy", "dropout": "mul", "feature_dropout": "mul"}
        if node.kind in simple:
            return ((KERNELS[simple[node.kind]], size * max(1, len(sources) - 1 if node.kind == "add" else 1)),)
        window = self._window(node, sources)
        if window is not None:
            return ((pooling(window[0], "forward", *window[1:]), size),)
        return None

    def _window(self, node: Node, sources: list[Node]) -> tuple[Literal["max", "average"], int, int, bool] | None:
        """Sort of pooling, elements of a window, its rows, whether windows overlap; None for what is no pooling."""
        bound = self.bound[node.name]
        if node.kind in ("max_pool", "avg_pool") and bound is not None:
            (height, width), stride = bound.options.kernel, bound.options.stride
            overlapping = height > stride[0] or width > stride[1]
            return "max" if node.kind == "max_pool" else "average", height * width, height, overlapping
        if node.kind in ("adaptive_avg_pool", "mean") and sources and len(sources[0].outputs[0].shape) == 4:
            window = max(1, _size(sources[0]) // _size(node))
            rows = next(r for r in range(ceil(window / 4), window + 1) if window % r == 0)
            return "average", window, rows, False
        return None

    def _forward_elements(self, node: Node, sources: list[Node]) -> int:
        """What a host moves: BatchNorm reads twice (statistics, then normalising); an activation after it again."""
        size = _size(node)
        relu = 2 * size if node.kind in _WITH_RELU and self._relu_after(node) is not None else 0
        if node.kind == "batch_norm":
            return 3 * size + relu
        return _elements(sources) + size + (size if node.kind.endswith("dropout") else 0) + relu

    # --- backward ----------------------------------------------------------------------------------------------------

    def _backward(self, node: Node, grads: dict[str, list[_Ready]]) -> None:
        if node.name not in self.trained or not node.outputs or node.kind in _IGNORED:
            return
        users = [n for n in self.consumers[node.name] if n.kind != "output"]
        arrived = grads[node.name]
        at = _latest(arrived) if arrived else _Ready()
        if len(arrived) > 1:
            size = _size(node)
            kernels = ((KERNELS["add"], _padded(node) * (len(arrived) - 1)),)
            moved = 3 * size * (len(arrived) - 1)
            name = f"{_title(node)} gradients"
            self._put(UnitTask(name, "accumulate", "input_grad", kernels, moved, _channels(node), at.fresh), at)
        if users and not arrived:
            return
        sources = self._sources(node)
        at = self._node_backward(node, sources, at)
        for source in sources:
            if source.name in self.trained:
                grads[source.name].append(at)

    def _node_backward(self, node: Node, sources: list[Node], at: _Ready) -> _Ready:
        if node.kind in _FREE or node.kind in ("add", "cat", "sub"):
            return at
        if node.kind in WEIGHTED:
            return self._open(self._conv_backward(node, sources))
        size, padded = _size(node), _padded(node)
        kernels: tuple[tuple[Kernel, int], ...]
        if node.kind == "batch_norm":
            kernels = ((KERNELS["bn_backward_sums"], padded), (KERNELS["bn_backward"], padded))
            moved = 5 * size
        elif node.kind in ("relu", "relu6", "hardtanh", "dropout", "feature_dropout", "mul"):
            kernels = ((KERNELS["mul" if "dropout" in node.kind or node.kind == "mul" else "relu_backward"], padded),)
            moved = 3 * size
        elif (window := self._window(node, sources)) is not None:
            kernels = ((pooling(window[0], "backward", *window[1:]), padded),)
            moved = size + _elements(sources) * (2 if window[0] == "max" else 1)
        else:
            flops = self.flops[node.name][1]
            return self._on_host(node, "input_grad", _elements(sources) + size, _elements(sources), flops)
        self._put(UnitTask(_title(node), node.kind, "input_grad", kernels, moved, _channels(node), at.fresh), at)
        return at

    def _conv_backward(self, node: Node, sources: list[Node]) -> Segment:
        """Input gradient, where one is wanted, then weight gradient: both need the gradient of the output only."""
        _, input_flops, weight_flops = self.flops[node.name]
        segment = Segment(_title(node), "weight_grad")
        inputs, outputs, weights = _elements(sources), _size(node), self._weights(node)
        if any(source.name in self.trained for source in sources):
            segment.phase = "input_grad"
            segment.host.append(
                HostTask(_title(node), node.kind, "input_grad", input_flops, outputs, weights, inputs,
                         _channels(sources[0]), self._depthwise(node))
            )  # fmt: skip
        if any(self.graph.parameters[p].requires_grad for p in node.parameters):
            segment.host.append(
                HostTask(_title(node), node.kind, "weight_grad", weight_flops, inputs + outputs, 0, weights, 1)
            )
        return segment

    # --- both --------------------------------------------------------------------------------------------------------

    def _open(self, segment: Segment) -> _Ready:
        self.segments.append(segment)
        return _Ready(len(self.segments) - 1, 1.0)

    def _put(self, task: UnitTask, at: _Ready) -> None:
        if at.segment < 0 or (task.phase != "forward" and self.segments[at.segment].phase == "forward"):
            self.segments.append(Segment(task.name, task.phase, [], [task]))
            return
        self.segments[at.segment].units.append(task)

    def _on_host(self, node: Node, phase: Phase, reads: int, writes: int, flops: int) -> _Ready:
        self.notes[f"{node.kind} ({_title(node)}) has no kernel for units in memory and stays with the host"] = None
        task = HostTask(_title(node), node.kind, phase, flops, reads, 0, writes, _channels(node), own_inputs=True)
        return self._open(Segment(_title(node), phase, [task]))

    def _sources(self, node: Node) -> list[Node]:
        nodes = [self.graph.by_name[name] for name in node.inputs]
        return [source for source in nodes if source.outputs and source.kind not in ("attribute", "size")]

    def _weights(self, node: Node) -> int:
        return sum(self.graph.parameter_elements[name] for name in node.parameters)

    def _depthwise(self, node: Node) -> bool:
        bound = self.bound[node.name]
        return bound is not None and getattr(bound.options, "groups", 1) > 1

    def _relu_after(self, node: Node) -> Node | None:
        users = self.consumers[node.name]
        return users[0] if len(users) == 1 and users[0].kind == "relu" else None

    def _fused(self, node: Node) -> bool:
        """Whether this ReLU is done by the last MOV of the task before it."""
        sources = self._sources(node)
        return len(sources) == 1 and sources[0].kind in _WITH_RELU and self._relu_after(sources[0]) is node


def _latest(before: list[_Ready]) -> _Ready:
    last = max((r.segment for r in before), default=-1)
    return _Ready(last, max((r.fresh for r in before if r.segment == last), default=0.0))


def _title(node: Node) -> str:
    return node.path or node.name


def _size(node: Node) -> int:
    return sum(spec.elements for spec in node.outputs)


def _elements(nodes: list[Node]) -> int:
    return sum(map(_size, nodes))


def _channels(node: Node) -> int:
    shape: Any = node.outputs[0].shape
    return int(shape[1]) if len(shape) > 1 else 1


def _padded(node: Node) -> int:
    """Elements with the channels filled up to whole blocks of lanes."""
    shape = node.outputs[0].shape
    if len(shape) < 2:
        return prod(shape)
    return prod(shape) // shape[1] * ceil(shape[1] / LANE_BLOCK) * LANE_BLOCK
