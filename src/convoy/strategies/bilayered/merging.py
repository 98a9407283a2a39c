"""Merging on flat arrays: weights by the rule's factors, BatchNorm's estimates as mixtures, counters by maximum.

NumPy only, in a fixed order, so that the same pushes in the same order give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from convoy.strategies.bilayered.layout import Entry, Flat, Layout, is_weights


def add(layout: Layout, current: Flat, weight: float, deltas: Flat, values: Flat) -> Flat:
    """W + weight·delta. Buffers go over to the node's by ``weight``, held between 0 and 1."""
    merged = {key: array + array.dtype.type(weight) * deltas[key] for key, array in current.items() if is_weights(key)}
    share = min(max(weight, 0.0), 1.0)
    return merged | _buffers(layout, [1 - share, share], [current, values])


def average(layout: Layout, weights: Sequence[float], nodes: Sequence[Flat]) -> Flat:
    """Σ weight_j·W_j with weights that sum to 1; buffers by the same weights."""
    merged: Flat = {}
    for key, first in nodes[0].items():
        if is_weights(key):
            total = first.dtype.type(weights[0]) * first
            for weight, node in zip(weights[1:], nodes[1:], strict=True):
                total = total + first.dtype.type(weight) * node[key]
            merged[key] = total
    return merged | _buffers(layout, weights, nodes)


def _buffers(layout: Layout, weights: Sequence[float], nodes: Sequence[Flat]) -> Flat:
    """var = Σw(σ² + μ²) − (Σwμ)², in double precision, since the difference cancels."""
    merged = {key: array.copy() for key, array in nodes[0].items() if not is_weights(key)}
    means: dict[str, Entry] = {}
    for entry in layout.entries:
        if entry.kind == "weight":
            continue
        place = slice(entry.start, entry.stop)
        found = [node[entry.key][place] for node in nodes]
        if entry.kind == "counter":
            merged[entry.key][place] = np.maximum.reduce(found)
            continue
        if entry.kind == "mean":
            means[_owner(entry.name)] = entry
        if entry.kind == "variance":
            mean = means[_owner(entry.name)]
            mu = [node[mean.key][mean.start : mean.stop].astype(np.float64) for node in nodes]
            second = sum(w * (v.astype(np.float64) + m * m) for w, v, m in zip(weights, found, mu, strict=True))
            first = sum(w * m for w, m in zip(weights, mu, strict=True))
            merged[entry.key][place] = np.maximum(second - first * first, 0.0)
        else:
            merged[entry.key][place] = sum(w * v.astype(np.float64) for w, v in zip(weights, found, strict=True))
    return merged


def _owner(name: str) -> str:
    return name.rpartition(".")[0]
