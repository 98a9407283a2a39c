"""What each node of a graph costs on this machine, measured.

    profile = measure(graph, args, kwargs, loss=loss, target=y)
    profile.seconds, profile.forward_seconds(0, 7), profile.saved_bytes(0, 7)

Another program may run at any moment. So the whole graph runs several times rather than one node many times, passes
that were disturbed as a whole are dropped, and of each node's times a low quantile is taken.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convoy.errors import OptionError
from convoy.graph.alone import AloneRunner
from convoy.graph.flops import forward_flops
from convoy.graph.graph import Cost, Graph
from convoy.graph.profile import Alone, Profile, first_saved_bytes, relative_spread
from convoy.graph.saved import SavedRecorder
from convoy.graph.timed_pass import PassRunner, Times, intra_op_threads

__all__ = ["Profile", "measure"]

DISTURBED = 1.3
"""A pass that takes this many times the best one is dropped."""
FEWEST = 3
"""So many passes are kept in any case: one alone would say nothing of how far its nodes can be trusted."""
QUANTILE = 0.25
"""Of the kept passes, the quantile that stands for a node: low, since disturbance only ever adds."""


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
) -> Profile:
    """Run the captured model on the batch ``args``, ``kwargs`` and time every node, forward and backward.

    ``repeats`` passes after a first one, which warms up and records what autograd keeps; fewer if another would go
    past ``budget_seconds`` (the first pass always ends; if it takes the whole budget, it is what counts). Each pass
    is followed by a round in which the nodes with weights compute input and weight gradient apart: in this ratio their
    backward time of the pass is split, in halves where no round took place. ``loss(output, target)`` is timed with
    the output node; without a loss the outputs get gradients of one. Flags of the modules stay as they are.

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
        for count in range(repeats):
            start = perf_counter()
            if not warm or (count and start - began + longest > budget_seconds):
                break
            passes.append(runner.run())
            alone.run()
            longest = max(longest, perf_counter() - start)
    kept, dropped = undisturbed(passes[1:] if warm else passes)
    apart = alone.results(robust)
    forward = [robust([p.forward[i] for p in kept]) for i in range(len(graph.nodes))]
    backward = [robust([p.backward[i] for p in kept]) for i in range(len(graph.nodes))]
    fresh = first_saved_bytes(table)
    flops = forward_flops(graph)
    costs, spread = {}, {}
    for i, node in enumerate(graph.nodes):
        share = _weight_share(graph, i, apart)
        costs[node.name] = Cost(forward[i], backward[i] * (1.0 - share), backward[i] * share, flops[i], fresh[i])
        spread[node.name] = relative_spread([p.forward[i] + p.backward[i] for p in kept])
    return Profile(
        graph=graph.with_costs(costs),
        saved=table,
        method="measured",
        threads=threads,
        precision=precision,
        step_seconds=tuple(p.total for p in kept),
        dropped=dropped,
        spread=spread,
        alone=apart,
    )


def robust(values: Sequence[float]) -> float:
    """The low quantile that stands for several measurements of one thing."""
    return float(np.quantile(values, QUANTILE))


def undisturbed(passes: Sequence[Times]) -> tuple[list[Times], int]:
    """The passes that took at most ``DISTURBED`` times as long as the best one, but at least the ``FEWEST`` best, and
    how many were left out."""
    totals = sorted(p.total for p in passes)
    bound = max(DISTURBED * totals[0], totals[min(FEWEST, len(totals)) - 1])
    kept = [p for p in passes if p.total <= bound]
    return kept, len(passes) - len(kept)


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
