"""Which samples of a mini-batch keep what was speculated: the tests, and the set that comes out.

N samples. A *signal* is the gradient of the loss at some value, one row a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from convoy.graph.random import Key, stable_seed


@dataclass(frozen=True, slots=True)
class Selection:
    """The samples that are computed exactly. ``index``: their numbers, ascending, [rejected]. ``distance``: mean of
    what the test compared with the threshold. ``scale``: factor on exact minus speculated, for estimates that are to
    be unbiased: one for all, or one for each rejected sample."""

    samples: int
    index: Tensor
    distance: float = 0.0
    scale: float | Tensor = 1.0

    @property
    def rejected(self) -> int:
        return self.index.shape[0]

    @property
    def none(self) -> bool:
        """Whether everything was accepted."""
        return self.index.shape[0] == 0

    @property
    def all(self) -> bool:
        """Whether nothing was."""
        return self.index.shape[0] == self.samples

    @property
    def accepted(self) -> float:
        """Share of the samples."""
        return 1.0 - self.index.shape[0] / self.samples

    @property
    def code(self) -> str:
        """The set of accepted samples as text: a hexadecimal number, sample 0 in the lowest bit."""
        refused = set(self.index.tolist())
        return format(sum(1 << i for i in range(self.samples) if i not in refused), "x")

    @staticmethod
    def of(rejected: Tensor, distance: float = 0.0, scale: float | Tensor = 1.0) -> Selection:
        """From a bool for each sample."""
        return Selection(rejected.shape[0], rejected.nonzero().flatten(), distance, scale)

    # --- rows of tensors -----------------------------------------------------------------------------------

    def rows(self, value: Tensor) -> Tensor:
        """The rejected samples' rows [rejected, ...] of a whole tensor; itself where all are rejected."""
        return value if self.all else value[self.index]  # by indexing, which keeps channels last

    def scaled(self, speculated: Tensor | None, exact: Tensor) -> Tensor:
        """Whole tensors → rejected samples' rows, ŝ + ``scale`` · (s − ŝ); ``speculated`` None is ŝ = 0."""
        rows, scale = self.rows(exact), self.scale
        if isinstance(scale, Tensor):
            scale = scale.to(rows.dtype).view(-1, *[1] * (rows.dim() - 1))
        elif scale == 1.0:
            return rows
        if speculated is None:
            return scale * rows
        guess = self.rows(speculated)
        return guess + scale * (rows - guess)

    def mixed(self, speculated: Tensor | None, exact: Tensor) -> Tensor:
        """Whole tensor [N, ...]: ``exact`` rows of the rejected samples, ``speculated`` ones (None: zeros) of the
        others."""
        if self.all:
            return exact
        if speculated is None:
            whole = exact.new_zeros((self.samples, *exact.shape[1:]))
            if exact.dim() == 4:
                whole = whole.to(memory_format=torch.channels_last)
        else:
            whole = speculated.clone()
        whole[self.index] = exact
        return whole


def signal_distance(speculated: Tensor | None, exact: Tensor) -> Tensor:
    """‖ŝ_i − s_i‖ / √(mean_j ‖s_j‖²) for each sample [N]: in units of the mini-batch's root mean square signal.
    ``speculated`` None is ŝ = 0. Where no sample has a signal, not a number."""
    own = tuple(range(1, exact.dim()))  # not flattened first: that would copy what is channels last
    squares = exact.square().sum(own)
    errors = squares.sqrt() if speculated is None else (speculated - exact).square().sum(own).sqrt()
    return errors / squares.mean().sqrt()


def by_signal(speculated: Tensor | None, exact: Tensor, threshold: float) -> Selection:
    """Accept where ‖ŝ_i − s_i‖ < θ · √(mean_j ‖s_j‖²), so that the relative error of all accepted rows together is
    below θ. ``speculated`` None: samples with hardly any signal are accepted. θ = 0 accepts nothing."""
    return by_distance(signal_distance(speculated, exact), threshold)


def by_distance(distance: Tensor, threshold: float) -> Selection:
    """Accept where the distance [N] is below θ. What is no number is rejected."""
    return Selection.of(~(distance < threshold), _mean(distance))


def by_softmax(remembered: Tensor, softmax: Tensor, seen: Tensor, threshold: float) -> Selection:
    """Accept where ‖p_i − p̃_i‖₁ < θ and the label was seen before. Shapes [N, classes], [N, classes], [N]."""
    distance = (softmax - remembered).abs().sum(1)
    rejected = ~((distance < threshold) & seen)
    return Selection.of(rejected, _mean(distance[seen]) if bool(seen.any()) else 2.0)


def by_draw(distance: Tensor, threshold: float, seed: int, batch: int) -> Selection:
    """Reject with probability q_i = min(1, distance_i / θ), drawn by (seed, batch); a rejected row becomes
    ŝ + (s − ŝ)/q_i, so that the mean over the draws is exact whatever the data. No row's correction is longer than the
    longer of θ and its own. θ = 0 rejects all."""
    if threshold == 0.0:
        return by_distance(distance, 0.0)
    chance = (distance / threshold).clamp(max=1.0)
    rejected = ~(_uniform(distance.shape[0], seed, batch) >= chance)
    return Selection.of(rejected, _mean(distance), 1.0 / chance[rejected])


def by_chance(samples: int, accept: float, seed: int, batch: int, unbiased: bool) -> Selection:
    """Each sample is accepted with probability ``accept``, drawn by (seed, batch) and from nothing else. ``unbiased``:
    the rejected rows become ŝ + (s − ŝ)/(1 − ρ), so that the mean over the draws is exact."""
    rejected = _uniform(samples, seed, batch) >= accept
    return Selection.of(rejected, scale=1.0 / (1.0 - accept) if unbiased else 1.0)


def _uniform(samples: int, seed: int, batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(stable_seed(Key(seed, batch, 0, 0), "speculative.accept"))
    return torch.rand(samples, generator=generator)


def _mean(distance: Tensor) -> float:
    return float(distance.nan_to_num().mean())


def cosine(pairs: Sequence[tuple[float, float, float]]) -> float:
    """Of two long vectors, from (a·b, a·a, b·b) of their parts; 0 where one of them is zero."""
    ab, aa, bb = (sum(part[i] for part in pairs) for i in range(3))
    return ab / (aa * bb) ** 0.5 if aa > 0 and bb > 0 else 0.0


def products(a: Sequence[Tensor | None], b: Sequence[Tensor | None]) -> tuple[float, float, float]:
    """(a·b, a·a, b·b) of two lists of tensors."""
    ab = aa = bb = 0.0
    for one, other in zip(a, b, strict=True):
        if one is None or other is None:
            continue
        ab += float((one * other).sum())
        aa += float(one.square().sum())
        bb += float(other.square().sum())
    return ab, aa, bb
