"""What an optimizer's step takes, and adding up gradients before it, measured on copies of the weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from convoy.graph.cost_passes import robust
from convoy.graph.timed_pass import intra_op_threads

MOST_BYTES = 128_000_000
"""Of more weights than that only a part is copied; the time is taken to grow with the bytes."""


def update_seconds(
    parameters: Sequence[Tensor], optimizer: Optimizer | None = None, *, threads: int = 1, repeats: int = 5
) -> float:
    """Seconds of one step for all ``parameters`` that are trained, by an optimizer like ``optimizer`` (None: SGD with
    momentum and weight decay)."""
    chosen, share = _some(parameters)
    copies = [nn.Parameter(p.detach().clone()) for p in chosen]
    for copied in copies:
        copied.grad = torch.zeros_like(copied)
    return _seconds(like(optimizer, copies).step, copies, threads, repeats) / share if copies else 0.0


def adding_seconds(parameters: Sequence[Tensor], *, threads: int = 1, repeats: int = 5) -> float:
    """Seconds of adding one more gradient to those that are kept, for all ``parameters`` that are trained: what every
    micro-batch after the first costs besides computing its gradient."""
    chosen, share = _some(parameters)
    kept = [torch.zeros_like(p) for p in chosen]
    fresh = [torch.zeros_like(p) for p in chosen]

    def add() -> None:
        for total, more in zip(kept, fresh, strict=True):
            total.add_(more)

    return _seconds(add, kept, threads, repeats) / share if kept else 0.0


def state_share(optimizer: Optimizer | None = None) -> float:
    """Bytes of state that an optimizer like ``optimizer`` keeps for a byte of weights: 1 for SGD with momentum (and for
    None), 2 for Adam. Found by a step of two small weights; where that fails, 1."""
    tried = [nn.Parameter(torch.zeros(32, 32)), nn.Parameter(torch.zeros(32))]
    for parameter in tried:
        parameter.grad = torch.zeros_like(parameter)
    try:
        made = like(optimizer, tried)
        made.step()
    except Exception:  # a step of the user's own, made for other weights
        return 1.0
    # Single numbers are counters of steps.
    kept = [v for of in made.state.values() for v in of.values() if torch.is_tensor(v) and v.dim()]
    return sum(value.nbytes for value in kept) / sum(p.nbytes for p in tried)


def _some(parameters: Sequence[Tensor]) -> tuple[list[Tensor], float]:
    """Of the trained ``parameters`` as many as are worth copying, and which share of all bytes these are."""
    trained = [p.detach() for p in parameters if p.requires_grad]
    whole = sum(p.nbytes for p in trained)
    chosen = trained[:: -(-whole // MOST_BYTES)] if trained else []
    return chosen, sum(p.nbytes for p in chosen) / whole if whole else 1.0


def _seconds(run: Callable[[], object], on: Sequence[Tensor], threads: int, repeats: int) -> float:
    seconds = []
    with intra_op_threads(threads):
        for _ in range(repeats + 1):
            start = perf_counter()
            run()
            if on[0].is_cuda:
                torch.cuda.synchronize(on[0].device)
            seconds.append(perf_counter() - start)
    return robust(seconds[1:])


def like(optimizer: Optimizer | None, parameters: list[nn.Parameter]) -> Optimizer:
    """An optimizer of the same kind, with the options of its first group, for other weights; SGD with momentum where it
    cannot be had."""
    if optimizer is not None:
        given = optimizer.defaults | {k: v for k, v in optimizer.param_groups[0].items() if k in optimizer.defaults}
        try:
            taken = inspect.signature(type(optimizer)).parameters  # AdamW's defaults hold one of Adam's besides
            return type(optimizer)(parameters, **{k: v for k, v in given.items() if k in taken})
        except Exception:  # an optimizer of the user's with a constructor of its own, or one for other shapes
            pass
    return SGD(parameters, lr=0.0, momentum=0.9, weight_decay=5e-4)
