"""A model's weights and buffers as a few flat typed arrays: what travels, and how it is told from anything else.

Keys of a ``Flat`` are "weights/DTYPE" (parameters) and "buffers/DTYPE" (BatchNorm estimates and other buffers).
Nothing here unpickles; the arrays of another node are checked for their number, shape, dtype and finiteness.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from convoy.errors import RunError

Flat: TypeAlias = "dict[str, NDArray[Any]]"
"""One-dimensional arrays by key. Never changed in place once they are handed on."""

FLOATS = ("float32", "float64")


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor's place: ``start`` … ``stop`` of the array ``key``. ``kind``: "weight", "mean" and "variance" (running
    estimates of a normalisation), "counter" (whole numbers) or "buffer" (anything else)."""

    name: str
    kind: str
    key: str
    start: int
    stop: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """All tensors of a model in the order of its definition, and the length of each array."""

    entries: tuple[Entry, ...]
    sizes: Mapping[str, int]

    def header(self) -> dict[str, Any]:
        """Plain values; ``Layout.parse`` reads them back."""
        return {"entries": [asdict(entry) for entry in self.entries], "sizes": dict(self.sizes)}

    @classmethod
    def parse(cls, header: Mapping[str, Any]) -> Layout:
        entries = tuple(Entry(**{**e, "shape": tuple(e["shape"])}) for e in header["entries"])
        return cls(entries, dict(header["sizes"]))

    def check(self, arrays: Mapping[str, Any], sender: str) -> bool:
        """Whether all numbers are finite. Raises RunError where the arrays are not those of this model."""
        if set(arrays) != set(self.sizes):
            raise RunError(
                f"{sender} sent the arrays {', '.join(sorted(arrays)) or 'nothing'}, not {', '.join(self.sizes)}",
                hint="all nodes must build the same model",
            )
        finite = True
        for key, size in self.sizes.items():
            array, dtype = arrays[key], np.dtype(key.partition("/")[2])
            if not isinstance(array, np.ndarray) or array.shape != (size,) or array.dtype != dtype:
                found = f"{array.dtype}{list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
                raise RunError(
                    f"{sender} sent {key} as {found} instead of {dtype}[{size}]",
                    hint="all nodes must build the same model",
                )
            finite = finite and bool(dtype.kind != "f" or np.isfinite(array).all())
        return finite

    @property
    def bytes(self) -> int:
        """Of one set of arrays."""
        return sum(size * np.dtype(key.partition("/")[2]).itemsize for key, size in self.sizes.items())


def is_weights(key: str) -> bool:
    return key.startswith("weights/")


def to_bfloat16(values: NDArray[Any]) -> NDArray[np.uint16]:
    """Finite numbers rounded to bfloat16 (to nearest, ties to even), as their 16 bits."""
    bits = values.astype(np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return rounded.astype(np.uint16)


def from_bfloat16(bits: NDArray[np.uint16], dtype: str) -> NDArray[Any]:
    """The numbers of bfloat16 bits in another floating dtype; exact."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(dtype)
