"""What a node sends with a push: its weights as they are, or what it changed, in full precision or bfloat16.

"weights" needs the server to have the version that the node began with; it is the default, because one node's weights
can then be taken over bit for bit. "delta" needs nothing. Buffers always travel as values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from convoy.errors import RunError
from convoy.strategies.bilayered.layout import Flat, Layout, from_bfloat16, is_weights, to_bfloat16


@dataclass(frozen=True, slots=True)
class Parcel:
    """``form``: "weights", "delta" or "bfloat16" (a delta whose weight arrays are the bits of bfloat16)."""

    form: str
    arrays: Flat

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())


def seal(form: str, weights: Flat, base: Flat) -> Parcel:
    """A parcel of ``weights``, trained from ``base``."""
    if form == "weights":
        return Parcel(form, weights)
    changed: Flat = {}
    for key, value in weights.items():
        if not is_weights(key):
            changed[key] = value
            continue
        delta = value - base[key]
        changed[key] = to_bfloat16(delta) if form == "bfloat16" and np.isfinite(delta).all() else delta
    return Parcel(form, changed)


def open_parcel(parcel: Parcel, layout: Layout, base: Flat | None, sender: str) -> tuple[Flat, Flat | None, bool]:
    """(values, deltas of the weights or None, all finite). ``values`` are W_j; their weight arrays are left out where
    ``base`` is not there. Raises RunError for what is no parcel of this model."""
    arrays: dict[str, Any] = dict(parcel.arrays)
    if parcel.form == "bfloat16":
        for key in filter(is_weights, layout.sizes):
            if isinstance(arrays.get(key), np.ndarray) and arrays[key].dtype == np.uint16:
                arrays[key] = from_bfloat16(arrays[key], key.partition("/")[2])
    elif parcel.form not in ("weights", "delta"):
        raise RunError(f"{sender} sent a parcel of the form {parcel.form!r}", hint="all nodes must run one version")
    finite = layout.check(arrays, sender)
    if parcel.form == "weights":
        deltas = None if base is None else {k: arrays[k] - base[k] for k in arrays if is_weights(k)}
        return arrays, deltas, finite
    deltas = {key: value for key, value in arrays.items() if is_weights(key)}
    values = {key: value for key, value in arrays.items() if not is_weights(key)}
    if base is not None:
        values |= {key: base[key] + delta for key, delta in deltas.items()}
    return values, deltas, finite
