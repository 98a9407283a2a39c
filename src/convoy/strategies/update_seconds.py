"""What an optimizer's step takes, measured on copies of the weights."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
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
    trained = [p for p in parameters if p.requires_grad]
    if not trained:
        return 0.0
    whole, copied = sum(p.nbytes for p in trained), 0
    copies: list[nn.Parameter] = []
    for p in trained[:: -(-whole // MOST_BYTES)]:
        copies.append(nn.Parameter(p.detach().clone()))
        copies[-1].grad = torch.zeros_like(copies[-1])
        copied += p.nbytes
    step = like(optimizer, copies)
    seconds = []
    with intra_op_threads(threads):
        for _ in range(repeats + 1):
            start = perf_counter()
            step.step()
            if copies[0].is_cuda:
                torch.cuda.synchronize(copies[0].device)
            seconds.append(perf_counter() - start)
    return robust(seconds[1:]) * whole / copied


def like(optimizer: Optimizer | None, parameters: list[nn.Parameter]) -> Optimizer:
    """An optimizer of the same kind for other weights; SGD with momentum where it cannot be had."""
    if optimizer is not None:
        try:
            taken = inspect.signature(type(optimizer)).parameters  # AdamW's defaults hold one of Adam's besides
            return type(optimizer)(parameters, **{k: v for k, v in optimizer.defaults.items() if k in taken})
        except TypeError:  # an optimizer of the user's with a constructor of its own
            pass
    return SGD(parameters, lr=0.0, momentum=0.9, weight_decay=5e-4)
