"""Streams of requests with known answers: what memory models are compared on."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from convoy.hardware.memory.address import Integers, MapName, encode
from convoy.hardware.memory.requests import Requests
from convoy.hardware.memory.timing import Memory

Pattern = Literal[
    "sequential read",
    "sequential write",
    "two reads, one write",
    "random read",
    "random write",
    "conflicts",
    "hits",
    "hits in four groups",
]
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)


def splitmix64(index: Integers) -> Integers:
    """A well-mixed 63-bit number of each index (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number
    Generators", OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        z = (index.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: Integers = ((z ^ (z >> np.uint64(31))) >> np.uint64(1)).astype(np.int64)
    return mixed


def pattern(name: Pattern, memory: Memory, order: MapName, count: int) -> Requests:
    """``count`` requests, one offered per clock. "conflicts": every one to another row of bank 0. "hits": all to row 0
    of bank 0, or of the first bank of each of four bank groups in turn."""
    index = np.arange(count, dtype=np.int64)
    zero = np.zeros(count, np.int64)
    if name in ("sequential read", "sequential write", "two reads, one write"):
        writes = index % 3 == 2 if name.startswith("two") else np.full(count, name.endswith("write"))
        return Requests(index * memory.burst_bytes, writes)
    if name in ("random read", "random write"):
        address = splitmix64(index) % min(memory.bytes, 1 << 30)
        return Requests(address // memory.burst_bytes * memory.burst_bytes, name.endswith("write"))
    if name == "conflicts":
        return Requests(encode(memory, order, zero, index % memory.rows, zero))
    group = index % memory.bank_groups if name == "hits in four groups" else zero
    column = (index // memory.bank_groups if name == "hits in four groups" else index) % memory.columns
    return Requests(encode(memory, order, group * memory.banks_per_group, zero, column))
