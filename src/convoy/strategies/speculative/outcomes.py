"""What the faithful form remembers of each label: softmax and error of a sample, and what its layers decided.

K labels. Signs are packed, one bit an element; choices of a max pool are bytes; of a BatchNorm, σ⁻¹ of the last
mini-batch is kept. With ``mean`` softmax and error are decaying means, and a sign is the majority of the last samples
(a counter of one byte an element).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convoy.graph.rules import Outcome, Saved
from convoy.graph.rules.activations import SignActivation
from convoy.graph.rules.rule import unpack_signs
from convoy.strategies.speculative.predictors import LabelMean, last_of_each
from convoy.strategies.tasks.units import Unit

VALUES_UNREAD = frozenset(
    ("conv2d", "linear", "avg_pool", "adaptive_avg_pool", "add", "cat", "flatten", "identity", "getitem", "pad")
)
"""Kinds whose input gradient reads sizes only of what was saved."""
OUTCOMES = frozenset(("relu", "relu6", "leaky_relu", "max_pool"))
KINDS = VALUES_UNREAD | OUTCOMES | {"batch_norm", "dropout"}
"""Kinds through which an error can be sent back without the sample's own forward pass."""

_MOST = 7  # a counter of signs goes from −7 to 7


@dataclass(frozen=True, slots=True)
class Remembers:
    """What a unit keeps for K labels: ``shape`` and type of its store."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    @classmethod
    def of(
        cls, unit: Unit, shape: tuple[int, ...], output: tuple[int, ...], classes: int, mean: bool
    ) -> Remembers | None:
        """``shape``, ``output``: of one sample of its input and output. None for a kind that remembers nothing."""
        rule, elements = unit.rule.rule, torch.Size(shape).numel()
        if isinstance(rule, SignActivation):
            return cls((classes, *shape), torch.int8) if mean else cls((classes, (elements + 7) // 8), torch.uint8)
        if rule.kind == "max_pool":
            kernel = unit.rule.options.kernel
            return cls((classes, *output), torch.uint8 if kernel[0] * kernel[1] <= 256 else torch.int32)
        if rule.kind == "batch_norm":
            return cls((shape[0],), torch.float32)
        return None


class OutcomeMemory:
    """One store a unit, and softmax [K, K] and error [K, K] at the logits. Written by one operation each."""

    def __init__(self, remembers: Mapping[str, Remembers], classes: int, mean: bool) -> None:
        self.classes, self.mean = classes, mean
        self.stores = {name: torch.zeros(r.shape, dtype=r.dtype) for name, r in remembers.items()}
        self.softmax = torch.zeros(classes, classes)
        self.error = torch.zeros(classes, classes)
        self.seen = torch.zeros(classes, dtype=torch.bool)

    @staticmethod
    def bytes(remembers: Mapping[str, Remembers], classes: int) -> int:
        return sum(r.bytes for r in remembers.values()) + classes * (8 * classes + 1)

    def learn_logits(self, labels: Tensor, logits: Tensor, error: Tensor) -> None:
        """Logits [N, K] and the error there, of the samples' own losses [N, K]."""
        softmax = torch.softmax(logits.float(), 1)
        present, places = last_of_each(labels, self.classes)
        if not self.mean:
            self.softmax[present], self.error[present] = softmax[places], error.float()[places]
        else:
            rows = torch.zeros(self.classes, labels.shape[0])
            rows[labels, torch.arange(labels.shape[0])] = 1.0
            rows = (rows / rows.sum(1, keepdim=True).clamp(min=1))[present]
            keep = torch.where(self.seen[present], LabelMean.DECAY, 0.0)[:, None]
            self.softmax[present] = keep * self.softmax[present] + (1 - keep) * (rows @ softmax)
            self.error[present] = keep * self.error[present] + (1 - keep) * (rows @ error.float())
        self.seen[present] = True

    def learn(self, unit: Unit, labels: Tensor, saved: Saved) -> None:
        """From what the unit saved of a mini-batch."""
        rule, options = unit.rule.rule, unit.rule.options
        store = self.stores[unit.name]
        if rule.kind == "batch_norm":
            self.stores[unit.name] = _invstd(unit, saved)
            return
        present, places = last_of_each(labels, self.classes)
        outcome = rule.outcome(options, rule.select_samples(options, saved, places))
        if self.mean and isinstance(rule, SignActivation):
            signs = unpack_signs(outcome.data, outcome.shape).to(torch.int8)
            store[present] = (store[present] + 2 * signs - 1).clamp_(-_MOST, _MOST)
        else:
            store[present] = outcome.data

    def signs(self, unit: Unit, labels: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Bool [N, *shape]: where the samples' labels let the gradient pass."""
        store = self.stores[unit.name]
        few = self.classes < labels.shape[0]
        store = store if few else store[labels]
        signs = store > 0 if self.mean else unpack_signs(store, shape)
        if signs.dim() == 4:
            signs = signs.contiguous(memory_format=torch.channels_last)
        return signs[labels] if few else signs

    def choices(self, unit: Unit, labels: Tensor, shape: tuple[int, ...]) -> Outcome:
        return Outcome(unit.rule.rule.kind, self.stores[unit.name][labels], shape)

    def state(self) -> dict[str, Any]:
        return {
            "stores": {name: store.clone() for name, store in self.stores.items()},
            "softmax": self.softmax.clone(),
            "error": self.error.clone(),
            "seen": self.seen.clone(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        for name, store in self.stores.items():
            if state["stores"][name].shape != store.shape or state["stores"][name].dtype != store.dtype:
                raise ValueError(f"the outcomes of {name} have another form")
        self.stores = {name: state["stores"][name].clone() for name in self.stores}
        self.softmax, self.error, self.seen = (state[key].clone() for key in ("softmax", "error", "seen"))


def _invstd(unit: Unit, saved: Saved) -> Tensor:
    """σ⁻¹ [C] by which the unit divided."""
    invstd = saved.tensors[2]
    if invstd.numel():
        return invstd.float().clone()
    variance = unit.rule.parameters["running_var"]
    assert variance is not None
    return torch.rsqrt(variance.float() + unit.rule.options.eps)
