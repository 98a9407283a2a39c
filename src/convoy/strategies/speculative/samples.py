"""The per-sample predictor: what the same image sent back when it was last seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from convoy.strategies.speculative.predictors import LabelMean, Predictor, Room


class PerSample(Predictor):
    """The exact signal of the same sample, last time it was seen; the label's mean for a sample not seen yet.

    A sample is recognised by its pixels, mirrored or not (a mirrored one gets the mirrored signal), so loaders need not
    say which samples they yield; random crops are not recognised. Signals are held in bfloat16, in a ring of as many as
    the memory bound allows.
    """

    name = "per-sample"
    wants = ("image",)

    def __init__(self, room: Room) -> None:
        super().__init__(room)
        self.mean = LabelMean(room)
        self.places: dict[int, int] = {}  # fingerprint → place in the ring
        self.keys: list[int] = []  # place → fingerprint
        self.sides: list[int] = []  # place → which way round it was
        self.ring = torch.zeros((0, *room.shape), dtype=torch.bfloat16)
        self.next = 0

    @classmethod
    def bytes(cls, room: Room) -> int:
        return LabelMean.bytes(room) + cls._slots(room) * (2 * room.elements)

    @classmethod
    def _slots(cls, room: Room) -> int:
        return max(0, room.limit_bytes - LabelMean.bytes(room)) // (2 * room.elements)

    def predict(self, labels: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        result = self.mean.predict(labels, given)
        for i, (key, side) in enumerate(fingerprints(given["image"])):
            place = self.places.get(key)
            if place is not None:
                row = self.ring[place].float()
                result[i] = row if self.sides[place] == side else row.flip(-1)
        return result

    def learn(self, labels: Tensor, signal: Tensor, given: Mapping[str, Tensor]) -> None:
        self.mean.learn(labels, signal, given)
        slots = self._slots(self.room)
        for i, (key, side) in enumerate(fingerprints(given["image"])):
            place = self.places.get(key)
            if place is None:
                if not slots:
                    return
                place = self._free(slots)
                self.places[key] = place
                self.keys[place] = key
            self.ring[place] = signal[i].to(torch.bfloat16)
            self.sides[place] = side

    def _free(self, slots: int) -> int:
        """A place for a new sample: a fresh one, or that of the sample that came in longest ago."""
        if len(self.keys) < slots:
            if len(self.keys) == self.ring.shape[0]:
                grown = min(slots, max(64, 2 * self.ring.shape[0]))
                ring = torch.zeros((grown, *self.room.shape), dtype=torch.bfloat16)
                ring[: self.ring.shape[0]] = self.ring
                self.ring = ring
            self.keys.append(0)
            self.sides.append(0)
            return len(self.keys) - 1
        place = self.next
        self.next = (place + 1) % slots
        del self.places[self.keys[place]]
        return place

    def state(self) -> dict[str, Any]:
        used = len(self.keys)
        return {
            "mean": self.mean.state(),
            "keys": list(self.keys),
            "sides": list(self.sides),
            "ring": self.ring[:used].clone(),
            "next": self.next,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.mean.restore(state["mean"])
        self.keys, self.sides = list(state["keys"]), list(state["sides"])
        self.places = {key: place for place, key in enumerate(self.keys)}
        self.ring, self.next = state["ring"].clone(), int(state["next"])


def fingerprints(images: Tensor) -> list[tuple[int, int]]:
    """For each image [C, H, W] a number that it shares with its mirror image alone, and which of the two it is.

    Sums of pixels as whole numbers, so that the order of adding does not matter.
    """
    whole = (images.float() * 65536.0).round().long().contiguous().flatten(1, -2)  # [N, C · H, W]
    rows, width = whole.shape[1], whole.shape[2]
    generator = torch.Generator().manual_seed(0)
    weights = torch.randint(1, 2**31, (rows, width), generator=generator)
    one = (whole * weights).sum((1, 2))
    other = (whole * weights.flip(1)).sum((1, 2))
    return [
        ((a * 1_000_003 + b) % 2**63 if a <= b else (b * 1_000_003 + a) % 2**63, int(a <= b))
        for a, b in zip(one.tolist(), other.tolist(), strict=True)
    ]
