"""Random numbers as a pure function of (seed, epoch, sample).

A generator's draws depend on what was drawn before; these do not. So a batch can be made by any thread, in any
order, or not at all (a resumed run skips it), and every sample still gets the same draw. The hash is SplitMix64
(Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014): draw i of a key is output i of
the generator started at that key. It is written out here because NumPy may change its streams between versions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def _mixed(value: int) -> int:
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK
    return value ^ (value >> 31)


def key(*parts: int) -> int:
    """One 64-bit key for a tuple of integers, such as (purpose, seed, epoch). The order of the parts matters."""
    state = 0
    for part in parts:
        state = _mixed((state + _STEP + _mixed((part + _STEP) & _MASK)) & _MASK)
    return state


def draws(of: int, indices: NDArray[np.int64]) -> NDArray[np.uint64]:
    """64 random bits for each index [n], keyed by ``of``; different indices never share a draw."""
    value = (indices.astype(np.uint64) + np.uint64(1)) * np.uint64(_STEP) + np.uint64(of)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(_MIX_1)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(_MIX_2)
    return value ^ (value >> np.uint64(31))


def below(bits: NDArray[np.uint64], bound: int) -> NDArray[np.int64]:
    """Whole numbers in [0, bound) from the lower 32 of the given bits; the bias is below bound / 2**32."""
    return ((bits & np.uint64(0xFFFFFFFF)) * np.uint64(bound) >> np.uint64(32)).astype(np.int64)


def permutation(of: int, count: int) -> NDArray[np.int64]:
    """The numbers 0 … count - 1 in an order that ``of`` decides: sorted by their draws, which are distinct."""
    return np.argsort(draws(of, np.arange(count, dtype=np.int64)))
