"""What each node of a graph costs on this machine, measured.

    profile = measure(graph, args, kwargs, loss=loss, target=y)
    profile.seconds, profile.forward_seconds(0, 7), profile.saved_bytes(0, 7)

Another program may run at any moment. So the whole graph runs several times rather than one node many times, and what
stands for a node is found from all passes together (``graph/cost_passes``).
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convoy.errors import OptionError
from convoy.graph.alone import AloneRunner
from convoy.graph.cost_passes import Typical, disagreement, drawn_to_prior, robust, typical
from convoy.graph.estimate import estimate
from convoy.graph.flops import forward_flops
from convoy.graph.graph import Cost, Graph
from convoy.graph.profile import Alone, Profile, first_saved_bytes, relative_spread
from convoy.graph.saved import SavedRecorder
from convoy.graph.timed_pass import PassRunner, intra_op_threads

__all__ = ["Profile", "measure"]

RESTLESS = 0.01
"""Above this disagreement of two halves of the passes, uncertain nodes are drawn towards operations and bytes."""
MOST = 4
"""At most so many times ``repeats`` passes, where ``agree`` asks for more than ``repeats``."""


def measure(
    graph: Graph,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    loss: Callable[[Any, Any], Tensor] | None = None,
    target: Any = None,
    repeats: int = 7,
    budget_seconds: float = 10.0,
    threads: int = 1,
    seed: int = 0,
    precision: str = "float32",
    apart: bool = True,
    agree: float | None = None,
) -> Profile:
    """Run the captured model on the batch ``args``, ``kwargs`` and time every node, forward and backward.

    ``repeats`` passes after a first one, which warms up and records what autograd keeps; fewer if another would go
    past ``budget_seconds`` (the first pass always ends; if it takes the whole budget, it is what counts). ``agree``:
    go on, up to four times as many, until two halves of the passes disagree by no more (``disagreement`` in
    ``cost_passes``). With ``apart`` each pass is followed by a round in which the nodes with weights compute input and
    weight gradient apart: in this ratio their backward time of the pass is split, in halves where no round took
    place. ``loss(output, target)`` is timed with the output node; without a loss the outputs get gradients of one.
    Flags of the modules stay as they are.

    The model is left as it was: buffers, ``.grad``, flags, and the generators of PyTorch, NumPy and Python.
    Raises OptionError for options that make no sense and DataError for a batch of another structure.
    """
    for name, value in (("repeats", repeats), ("threads", threads)):
        if value < 1:
            raise OptionError(f"{name} is {value}", hint="give a number from 1 up")
    values = graph.bind(args, kwargs)
    runner = PassRunner(graph, tuple(values.values()), loss=loss, target=target, seed=seed, precision=precision)
    with _undisturbing(runner.device), intra_op_threads(threads):
        began = perf_counter()
        saved, alone = SavedRecorder(len(graph.nodes), runner.owned), AloneRunner(runner)
        passes = [runner.run(saved, alone.observe)]
        table = saved.table()
        longest = 0.0
        warm = perf_counter() - began < budget_seconds
        for count in range(repeats if agree is None else MOST * repeats):
            start = perf_counter()
            if not warm or (count and start - began + longest > budget_seconds):
                break
            if agree is not None and count >= repeats and disagreement(passes[1:]) <= agree:
                break
            passes.append(runner.run())
            if apart:
                alone.run()
            longest = max(longest, perf_counter() - start)
    measured = typical(passes[1:] if warm else passes)
    split = alone.results(robust)
    forward, backward = _steadied(graph, measured, threads)
    fresh = first_saved_bytes(table)
    flops = forward_flops(graph)
    costs, spread = {}, {}
    for i, node in enumerate(graph.nodes):
        share = _weight_share(graph, i, split)
        costs[node.name] = Cost(forward[i], backward[i] * (1.0 - share), backward[i] * share, flops[i], fresh[i])
        spread[node.name] = relative_spread([p.forward[i] + p.backward[i] for p in measured.kept])
    return Profile(
        graph=graph.with_costs(costs),
        saved=table,
        method="measured",
        threads=threads,
        precision=precision,
        step_seconds=tuple(p.total for p in measured.kept),
        dropped=measured.dropped,
        spread=spread,
        alone=split,
    )


def _steadied(graph: Graph, measured: Typical, threads: int) -> tuple[list[float], list[float]]:
    """Forward and backward seconds; where the passes disagree, drawn towards operations and bytes."""
    forward, backward = list(measured.forward), list(measured.backward)
    if len(measured.kept) < 2 or disagreement(measured.kept) <= RESTLESS:
        return forward, backward
    both = [f + b for f, b in zip(forward, backward, strict=True)]
    expected = estimate(graph, threads=threads).costs
    steady = drawn_to_prior(both, measured.uncertainty, expected, [node.kind for node in graph.nodes])
    factors = [s / b if b > 0 else 1.0 for s, b in zip(steady, both, strict=True)]
    return [f * k for f, k in zip(forward, factors, strict=True)], [
        b * k for b, k in zip(backward, factors, strict=True)
    ]


def _weight_share(graph: Graph, position: int, apart: Mapping[str, Alone]) -> float:
    """Which part of a node's backward time goes into the gradients of weights."""
    node = graph.nodes[position]
    alone = apart.get(node.name)
    if alone is not None:
        both = alone.input_grad_seconds + alone.weight_grad_seconds
        return alone.weight_grad_seconds / both if both else 0.0
    attributes = [graph.by_name[name].parameters for name in node.inputs if graph.by_name[name].kind == "attribute"]
    names = (*node.parameters, *(name for parameters in attributes for name in parameters))
    if not any(graph.parameters[name].requires_grad for name in names):
        return 0.0
    return 0.5 if any(_wants_gradient(graph, name) for name in node.inputs) else 1.0


def _wants_gradient(graph: Graph, name: str) -> bool:
    """Whether something trained stands before ``name``, other than a weight that is read there."""
    pending, seen = [name], {name}
    while pending:
        node = graph.by_name[pending.pop()]
        if node.kind == "attribute":
            continue
        if any(graph.parameters[p].requires_grad for p in node.parameters):
            return True
        fresh = [before for before in node.inputs if before not in seen]
        seen.update(fresh)
        pending.extend(fresh)
    return False


@contextmanager
def _undisturbing(device: torch.device) -> Iterator[None]:
    """Put all generators back afterwards, and keep the garbage collector out of the measurement."""
    python, numpy, collecting = random.getstate(), np.random.get_state(), gc.isenabled()
    gc.disable()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        if collecting:
            gc.enable()
