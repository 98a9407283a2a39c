"""One pass of a graph, forward, loss and backward, with the time that each node takes in it.

The pass is the real one: one autograd graph, real gradients, tensors freed when their last reader is done. Forward
times are taken around each node. In the backward pass a hook before every autograd function takes the time, and what
passes until the next one belongs to the node that had made the function: sums of gradients at forks included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, fx, nn

from convoy.errors import OptionError
from convoy.graph.graph import Graph
from convoy.graph.random import keyed
from convoy.graph.saved import SavedRecorder
from convoy.graph.shadow import _copy as copied
from convoy.graph.structure import flatten

Call = Callable[..., Any]
Observer = Callable[[int, tuple[Any, ...], dict[str, Any]], None]
"""Is shown position and arguments of each node before it runs."""


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds by position in ``graph.nodes``."""

    forward: tuple[float, ...]
    backward: tuple[float, ...]

    @property
    def total(self) -> float:
        return sum(self.forward) + sum(self.backward)


class PassRunner:
    """Runs passes over copies of the graph's modules; the parameters are the user's own and are only read.
    ``inputs`` are values for the graph's input nodes, in order.

    No ``.grad`` is touched, no buffer, no flag. The loss is called as ``loss(output, target)``; without one the
    outputs are differentiated with gradients of one.
    """

    def __init__(
        self,
        graph: Graph,
        inputs: Sequence[Any],
        *,
        loss: Callable[[Any, Any], Tensor] | None = None,
        target: Any = None,
        seed: int = 0,
        precision: str = "float32",
    ) -> None:
        self.graph, self.seed, self.precision = graph, seed, precision
        self._loss, self._target = loss, target
        self.nodes: tuple[fx.Node, ...] = tuple(graph.program.graph.nodes)
        placeholders = (node for node in self.nodes if node.op == "placeholder")
        detached = (v.detach() if isinstance(v, Tensor) else v for v in inputs)
        self._inputs = dict(zip(placeholders, detached, strict=True))
        self.calls, self.attributes, self.owned = _copies(graph.program)
        self.parameters = [p for p in dict.fromkeys(graph.program.parameters()) if p.requires_grad]
        tensors = [*self.owned, *(v for v in self._inputs.values() if isinstance(v, Tensor))]
        self.device = next((t.device for t in tensors if t.device.type != "cpu"), torch.device("cpu"))
        self._dead = _last_readers(self.nodes)

    def now(self) -> float:
        """Seconds, when the device has finished what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return perf_counter()

    def context(self) -> AbstractContextManager[Any]:
        """What surrounds the forward pass of a node: autocast when asked for."""
        if self.precision == "float32":
            return nullcontext()
        if self.precision == "bfloat16":
            return torch.autocast(self.device.type, torch.bfloat16)
        raise OptionError(f"precision is {self.precision!r}", hint="choose float32 or bfloat16")

    def run(self, saved: SavedRecorder | None = None, observer: Observer | None = None) -> Times:
        """One pass. What autograd keeps is written to ``saved``."""
        forward = [0.0] * len(self.nodes)
        makers: dict[Any, int] = {}  # autograd function → position of the node that made it
        marks: list[tuple[float, int]] = []
        with torch.enable_grad(), keyed(self.seed, 0):
            with self.context(), saved.hooks() if saved is not None else nullcontext():
                roots = self._forward(forward, makers, saved, observer)
            if not roots or not self.parameters:
                return Times(tuple(forward), (0.0,) * len(self.nodes))
            for function, position in makers.items():
                function.register_prehook(partial(_mark, marks, self.now, position))
            seeds = [torch.ones_like(root) for root in roots]
            marks.append((self.now(), len(self.nodes) - 1))
            torch.autograd.grad(roots, self.parameters, seeds, allow_unused=True)
            marks.append((self.now(), -1))
        backward = [0.0] * len(self.nodes)
        for (start, position), (end, _) in pairwise(marks):
            backward[position] += end - start
        return Times(tuple(forward), tuple(backward))

    def _forward(
        self,
        seconds: list[float],
        makers: dict[Any, int],
        saved: SavedRecorder | None,
        observer: Observer | None,
    ) -> list[Tensor]:
        """Fills ``seconds`` and ``makers``; returns the tensors at which the backward pass begins."""
        values: dict[fx.Node, Any] = {}
        roots: list[Tensor] = []
        for position, node in enumerate(self.nodes):
            if saved is not None:
                saved.position = position
            if node.op == "placeholder":
                values[node] = self._inputs[node]
            elif node.op == "get_attr":
                values[node] = self.attributes[str(node.target)]
            else:
                args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
                if observer is not None and node.op != "output":
                    observer(position, args, kwargs)
                start = self.now()
                result = self._end(args[0]) if node.op == "output" else self.call(node)(*args, **kwargs)
                seconds[position] = self.now() - start
                del args, kwargs
                tensors, _ = flatten(result, lambda v: isinstance(v, Tensor))
                for tensor in tensors:
                    _claim(tensor.grad_fn, position, makers)
                values[node] = result
                if node.op == "output":
                    roots = [t for t in tensors if t.requires_grad]
            for dead in self._dead[position]:
                del values[dead]
        return list(dict.fromkeys(roots))

    def call(self, node: fx.Node) -> Call:
        """What computes ``node``: a function, or the copy of a module."""
        if node.op == "call_module":
            return self.calls[str(node.target)]
        if node.op == "call_method":
            return partial(_method, str(node.target))
        assert callable(node.target)
        return node.target

    def _end(self, leaves: Any) -> Any:
        """The model's output and the loss of it."""
        output = leaves
        if self.graph.output is not None:
            output = self.graph.output.rebuild(leaves if isinstance(leaves, (tuple, list)) else (leaves,))
        return output if self._loss is None else self._loss(output, self._target)


@contextmanager
def intra_op_threads(threads: int) -> Iterator[None]:
    """Within this block PyTorch uses ``threads`` threads inside an operator, in this thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _mark(marks: list[tuple[float, int]], now: Callable[[], float], position: int, _: Any) -> None:
    marks.append((now(), position))


def _method(name: str, target: Any, *args: Any, **kwargs: Any) -> Any:
    return getattr(target, name)(*args, **kwargs)


def _claim(function: Any, position: int, makers: dict[Any, int]) -> None:
    """Enter ``function`` and all that it stands on, as far as no earlier node has made it."""
    pending = [function]
    while pending:
        function = pending.pop()
        if function is not None and function not in makers:
            makers[function] = position
            pending.extend(before for before, _ in function.next_functions)


def _last_readers(nodes: tuple[fx.Node, ...]) -> tuple[tuple[fx.Node, ...], ...]:
    """For each position the nodes whose values nobody reads afterwards."""
    position = {node: index for index, node in enumerate(nodes)}
    dead: list[list[fx.Node]] = [[] for _ in nodes]
    for node in nodes:
        dead[max([position[node], *(position[user] for user in node.users)])].append(node)
    return tuple(map(tuple, dead))


def _copies(program: fx.GraphModule) -> tuple[dict[str, nn.Module], dict[str, Any], list[Tensor]]:
    """Modules by target, with buffers of their own and the user's parameters; attributes; all tensors they own."""
    memo: dict[int, Any] = {id(p): p for p in program.parameters()}
    for module in program.modules():  # weight_norm and its like leave computed tensors, which deepcopy refuses
        computed = (v for v in vars(module).values() if isinstance(v, Tensor) and id(v) not in memo)
        memo.update({id(v): v.detach().clone() for v in computed})
    targets = list(dict.fromkeys(str(n.target) for n in program.graph.nodes if n.op == "call_module"))
    modules: nn.Module = copied(nn.ModuleList([program.get_submodule(t) for t in targets]), memo)
    assert isinstance(modules, nn.ModuleList)
    attributes: dict[str, Any] = {}
    for target in dict.fromkeys(str(n.target) for n in program.graph.nodes if n.op == "get_attr"):
        value: Any = program
        for part in target.split("."):
            value = getattr(value, part)
        is_state = isinstance(value, Tensor) and not isinstance(value, nn.Parameter)
        attributes[target] = value.clone() if is_state else value
    owned = [*program.parameters(), *modules.buffers(), *(v for v in attributes.values() if isinstance(v, Tensor))]
    return dict(zip(targets, modules, strict=True)), attributes, owned
