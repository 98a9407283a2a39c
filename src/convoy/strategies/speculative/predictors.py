"""Predictors of the signal at the cut, by name. Each is one small class.

Shapes: N samples, K classes, S the signal of one sample ([C, H, W] at a convolution's output), F its elements. A signal
is the gradient of the sample's *own* loss, so that it does not depend on the size of the batch. ``given`` holds what a
predictor asked for in ``wants``: "softmax" [N, K], "activation" (the value at the cut, [N, *S]), "image" (the model's
first input). Asking for the softmax lets the prediction wait for the upper part's forward pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Room:
    """What a predictor is made for: ``shape`` S, classes, the bound on its memory in bytes, the seed."""

    shape: tuple[int, ...]
    classes: int
    limit_bytes: int
    seed: int = 0
    channels_last: bool = False

    @property
    def elements(self) -> int:
        return prod(self.shape)

    def rows(self, signals: Tensor) -> Tensor:
        """Signals [N, *S] as rows [N, F], in the order in which they lie in memory."""
        if self.channels_last and len(self.shape) == 3:
            signals = signals.permute(0, 2, 3, 1)
        return signals.reshape(signals.shape[0], self.elements)

    def signals(self, rows: Tensor) -> Tensor:
        """The inverse of ``rows``."""
        if self.channels_last and len(self.shape) == 3:
            c, h, w = self.shape
            return rows.reshape(-1, h, w, c).permute(0, 3, 1, 2)
        return rows.reshape(-1, *self.shape)


class Predictor(ABC):
    """``predict`` before, ``learn`` after the exact signals of a mini-batch are known. Both without autograd."""

    name: ClassVar[str]
    wants: ClassVar[tuple[str, ...]] = ()
    silent: ClassVar[bool] = False
    """Predicts zero: nothing has to be sent back for it."""

    def __init__(self, room: Room) -> None:
        self.room = room

    @classmethod
    def bytes(cls, room: Room) -> int:
        """What it holds at most."""
        return 0

    @abstractmethod
    def predict(self, labels: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """Labels [N] → signals [N, *S]."""

    @abstractmethod
    def learn(self, labels: Tensor, signal: Tensor, given: Mapping[str, Tensor]) -> None:
        """From the exact signals [N, *S]."""

    def state(self) -> dict[str, Any]:
        """Tensors and plain values for a checkpoint."""
        return {name: _copied(value) for name, value in self._kept().items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        for name, value in self._kept().items():
            found = _copied(state[name])
            if isinstance(value, Tensor) and found.shape != value.shape:
                raise ValueError(f"{name} has the shape {tuple(found.shape)}, not {tuple(value.shape)}")
            setattr(self, name, found)

    def _kept(self) -> dict[str, Any]:
        """Attributes to keep."""
        return {}


def _copied(value: Any) -> Any:
    """``value`` with tensors that share memory with nothing."""
    if isinstance(value, list):
        return [_copied(item) for item in value]
    return value.clone() if isinstance(value, Tensor) else value


class Zero(Predictor):
    """ŝ = 0: samples with hardly any signal are skipped in the lower part, all others computed."""

    name = "zero"
    silent = True

    def predict(self, labels: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        return torch.zeros((labels.shape[0], *self.room.shape))

    def learn(self, labels: Tensor, signal: Tensor, given: Mapping[str, Tensor]) -> None:
        """There is nothing to learn."""


class _ByLabel(Predictor):
    """A store [K, *S] of one signal a label."""

    def __init__(self, room: Room) -> None:
        super().__init__(room)
        self.store = room.signals(torch.zeros(room.classes, room.elements))
        self.seen = torch.zeros(room.classes, dtype=torch.bool)

    @classmethod
    def bytes(cls, room: Room) -> int:
        return room.classes * (4 * room.elements + 1)

    def predict(self, labels: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        return self.store[labels]

    def _kept(self) -> dict[str, Any]:
        return {"store": self.store, "seen": self.seen}


def last_of_each(labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """The labels that occur, ascending, and for each the number of the last sample that has it."""
    places = torch.full((classes,), -1).scatter_reduce(0, labels, torch.arange(labels.shape[0]), "amax")
    present = (places >= 0).nonzero().flatten()
    return present, places[present]


class LabelLast(_ByLabel):
    """The signal of the last sample with the same label."""

    name = "label-last"

    def learn(self, labels: Tensor, signal: Tensor, given: Mapping[str, Tensor]) -> None:
        present, places = last_of_each(labels, self.room.classes)
        self.store[present] = signal[places]
        self.seen[present] = True


class LabelMean(_ByLabel):
    """The mean signal of samples with the same label: of a mini-batch, then with decay 0.9 over mini-batches."""

    name = "label-mean"
    DECAY = 0.9

    def learn(self, labels: Tensor, signal: Tensor, given: Mapping[str, Tensor]) -> None:
        rows = torch.zeros(self.room.classes, labels.shape[0])
        rows[labels, torch.arange(labels.shape[0])] = 1.0
        counts = rows.sum(1)
        present = (counts > 0).nonzero().flatten()
        weights = (rows / counts.clamp(min=1)[:, None])[present]
        means = weights @ self.room.rows(self._target(labels, signal, given))
        kept = torch.where(self.seen[present], self.DECAY, 0.0)[:, None]
        store = self.room.rows(self.store)
        store[present] = (store[present] * kept).addcmul_(means, 1 - kept)
        self.store = self.room.signals(store)
        self.seen[present] = True

    def _target(self, labels: Tensor, signal: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        return signal

    def _along(self, values: Tensor) -> Tensor:
        return values.reshape(-1, *[1] * len(self.room.shape))


class ErrorScaled(LabelMean):
    """ŝ_i = D_{y_i} · (1 − p_{i,y_i}) with D_c the decaying mean of s / (1 − p_y): a sample that is right sends
    nothing back. 1 − p_y counts as 0.05 at least where it divides."""

    name = "error-scaled"
    wants = ("softmax",)
    LEAST = 0.05

    def predict(self, labels: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        return self.store[labels] * self._along(_error(labels, given["softmax"]))

    def _target(self, labels: Tensor, signal: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        return signal / self._along(_error(labels, given["softmax"]).clamp(min=self.LEAST))


def _error(labels: Tensor, softmax: Tensor) -> Tensor:
    """1 − p_y [N]."""
    return 1.0 - softmax.gather(1, labels[:, None])[:, 0]


class Linear(Predictor):
    """ŝ = A (p − e_y) by decaying least squares: A = Σ s qᵀ (Σ q qᵀ + λ I)⁻¹ with q = p − e_y, λ = 0.01 of the mean
    diagonal. The true signal is linear in q with the upper part's Jacobian; A is the mean of it."""

    name = "linear"
    wants = ("softmax",)
    DECAY, RIDGE = 0.95, 0.01

    def __init__(self, room: Room) -> None:
        super().__init__(room)
        self.cross = torch.zeros(room.classes, room.elements)
        self.square = torch.zeros(room.classes, room.classes)
        self.map = torch.zeros(room.classes, room.elements)

    @classmethod
    def bytes(cls, room: Room) -> int:
        return 4 * room.classes * (2 * room.elements + room.classes)

    def predict(self, labels: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        return self.room.signals(_softmax_error(labels, given["softmax"]) @ self.map)

    def learn(self, labels: Tensor, signal: Tensor, given: Mapping[str, Tensor]) -> None:
        q = _softmax_error(labels, given["softmax"])
        self.cross = self.DECAY * self.cross + q.t() @ self.room.rows(signal)
        self.square = self.DECAY * self.square + q.t() @ q
        ridge = self.RIDGE * self.square.diagonal().mean() + 1e-12
        self.map = torch.linalg.solve(self.square + ridge * torch.eye(self.room.classes), self.cross)

    def _kept(self) -> dict[str, Any]:
        return {"cross": self.cross, "square": self.square, "map": self.map}


def _softmax_error(labels: Tensor, softmax: Tensor) -> Tensor:
    """p − e_y [N, K]."""
    return softmax - F.one_hot(labels, softmax.shape[1]).to(softmax.dtype)


class Network(Predictor):
    """A small network on (activation, label), trained by Adam on the exact signals: synthetic gradients (Jaderberg et
    al. 2017). Two pointwise layers with 32 channels between; the label enters as a bias of the hidden channels."""

    name = "network"
    wants = ("activation",)
    HIDDEN, RATE, BETAS = 32, 1e-3, (0.9, 0.999)

    def __init__(self, room: Room) -> None:
        super().__init__(room)
        generator = torch.Generator().manual_seed(room.seed)
        channels = room.shape[0]
        self.first = torch.randn(self.HIDDEN, channels, generator=generator) / channels**0.5
        self.label = torch.zeros(room.classes, self.HIDDEN)
        self.second = torch.zeros(channels, self.HIDDEN)
        self.unit = torch.zeros(())  # root mean square of the signals, decaying: the target is of size one
        self.moments = [torch.zeros_like(w) for w in self._weights() for _ in range(2)]
        self.count = 0

    @classmethod
    def bytes(cls, room: Room) -> int:
        return 12 * cls.HIDDEN * (2 * room.shape[0] + room.classes)

    def _weights(self) -> list[Tensor]:
        return [self.first, self.label, self.second]

    def _apply(self, weights: list[Tensor], labels: Tensor, activation: Tensor) -> Tensor:
        first, label, second = weights
        x = activation.reshape(labels.shape[0], self.room.shape[0], -1)
        hidden = torch.relu(torch.einsum("hc,ncp->nhp", first, x) + label[labels][:, :, None])
        return torch.einsum("ch,nhp->ncp", second, hidden).reshape(-1, *self.room.shape)

    def predict(self, labels: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        return self._apply(self._weights(), labels, given["activation"]) * self.unit

    def learn(self, labels: Tensor, signal: Tensor, given: Mapping[str, Tensor]) -> None:
        size = signal.square().mean().sqrt()
        self.unit = size if self.count == 0 else 0.99 * self.unit + 0.01 * size
        weights = [w.detach().requires_grad_() for w in self._weights()]
        with torch.enable_grad():
            error = F.mse_loss(self._apply(weights, labels, given["activation"].detach()), signal / (self.unit + 1e-12))
            gradients = torch.autograd.grad(error, weights)
        self.count += 1
        self.first, self.label, self.second = (
            self._adam(place, w.detach(), g) for place, (w, g) in enumerate(zip(weights, gradients, strict=True))
        )

    def _adam(self, place: int, weight: Tensor, gradient: Tensor) -> Tensor:
        (b1, b2), m, v = self.BETAS, self.moments[2 * place], self.moments[2 * place + 1]
        self.moments[2 * place] = m = b1 * m + (1 - b1) * gradient
        self.moments[2 * place + 1] = v = b2 * v + (1 - b2) * gradient.square()
        m, v = m / (1 - b1**self.count), v / (1 - b2**self.count)
        return weight - self.RATE * m / (v.sqrt() + 1e-8)

    def _kept(self) -> dict[str, Any]:
        return {
            "first": self.first, "label": self.label, "second": self.second, "unit": self.unit,
            "moments": self.moments, "count": self.count,
        }  # fmt: skip
