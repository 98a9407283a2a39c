"""Where gradients from later stages enter a stage's backward pass, without holding on to what they are gradients of.

A stage's outputs need not outlive their hand-over: what its backward pass needs of them autograd has saved. Nor need a
gradient outlive its first use. ``torch.autograd.backward(outputs, gradients)`` would hold both to the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge


class Entry:
    """The way in for one part. ``places``: consumer → for each value it was handed, its place among the distinct
    outputs (None: it needs no gradient)."""

    __slots__ = ("_box", "_edges", "_places", "_root")

    def __init__(self, outputs: Sequence[Tensor], places: Mapping[int, Sequence[int | None]]) -> None:
        self._places = places
        self._edges: list[GradientEdge] = [get_gradient_edge(output) for output in outputs]
        self._box: list[Tensor | None] = []
        self._root: Tensor = _Root.apply(self._box, *outputs)  # type: ignore[no-untyped-call]

    def backward(self, gradients: dict[int, list[Tensor | None]]) -> None:
        """The stage's backward pass. Empties ``gradients``: consumer → those of the values it was handed.

        A value that several stages consume gets its gradients added in the order of the consumers, last stage first,
        the order in which they fall due.
        """
        total: list[Tensor | None] = [None] * len(self._edges)
        for consumer in sorted(gradients, reverse=True):
            for place, gradient in zip(self._places[consumer], gradients.pop(consumer), strict=True):
                if place is None or gradient is None:
                    continue
                before = total[place]
                total[place] = gradient if before is None else before + gradient
            gradient = before = None
        if all(gradient is not None for gradient in total):
            self._box.extend(total)
            total.clear()
            torch.autograd.backward(self._root)
            return
        known = [(edge, gradient) for edge, gradient in zip(self._edges, total, strict=True) if gradient is not None]
        if known:
            torch.autograd.backward([edge for edge, _ in known], [gradient for _, gradient in known])


def entry_of(sent: Mapping[int, Sequence[Tensor | None]]) -> Entry | None:
    """The entry for what was handed to each consumer (None where no gradient comes back); None for nothing at all."""
    outputs: list[Tensor] = []
    place: dict[int, int] = {}  # id of an output → its place in outputs
    places: dict[int, list[int | None]] = {}
    for consumer, values in sent.items():
        places[consumer] = []
        for value in values:
            if value is not None and id(value) not in place:
                place[id(value)] = len(outputs)
                outputs.append(value)
            places[consumer].append(None if value is None else place[id(value)])
    return Entry(outputs, places) if outputs else None


class _Root(torch.autograd.Function):
    """A scalar whose backward pass sends the gradients in ``box`` to ``outputs``, and forgets them."""

    @staticmethod
    def forward(ctx: Any, box: list[Tensor | None], *outputs: Tensor) -> Tensor:
        ctx.box = box
        return torch.zeros((), device=outputs[0].device)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients = tuple(ctx.box)
        ctx.box.clear()
        for gradient in gradients:
            if gradient is not None and gradient.is_cuda:  # the stream of the forward pass may be another one
                gradient.record_stream(torch.cuda.current_stream(gradient.device))
        return None, *gradients
