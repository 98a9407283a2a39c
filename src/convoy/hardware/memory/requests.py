"""What is asked of a memory, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from convoy.errors import OptionError
from convoy.hardware.memory.address import Integers
from convoy.hardware.memory.timing import Memory

OUTCOMES = ("hit", "closed", "conflict")


@dataclass(frozen=True)
class Requests:
    """One burst each, in the order in which they are offered.

    ``address``: bytes, [n]. ``is_write``: [n], or one value for all. ``requester``: small numbers from 0, for latencies
    by requester. ``arrival``: clocks from which on each is offered, never falling; one is taken per clock, and who does
    not fit into its queue holds back those behind. None: one is offered every clock.
    """

    address: ArrayLike
    is_write: ArrayLike | bool = False
    requester: ArrayLike | None = None
    arrival: ArrayLike | None = None

    def arrays(self) -> tuple[Integers, NDArray[np.bool_], Integers, Integers]:
        """Address, is_write, requester and arrival as arrays of one length. Raises OptionError where they do not fit
        together."""
        address = np.ascontiguousarray(self.address, dtype=np.int64).reshape(-1)
        n = address.size
        writes = np.broadcast_to(np.asarray(self.is_write, dtype=np.bool_), n) if np.ndim(self.is_write) == 0 else None
        if writes is None:
            writes = np.asarray(self.is_write, dtype=np.bool_).reshape(-1)
        requester = (
            np.zeros(n, np.int64) if self.requester is None else np.asarray(self.requester, np.int64).reshape(-1)
        )
        arrival = (
            np.arange(n, dtype=np.int64) if self.arrival is None else np.asarray(self.arrival, np.int64).reshape(-1)
        )
        for name, array in (("is_write", writes), ("requester", requester), ("arrival", arrival)):
            if array.size != n:
                raise OptionError(
                    f"there are {n} addresses but {array.size} values of {name}", hint="give one for each"
                )
        if n and (address.min() < 0 or requester.min() < 0 or arrival.min() < 0):
            raise OptionError("an address, requester or arrival is negative", hint="count them from 0")
        if n > 1 and (np.diff(arrival) < 0).any():
            raise OptionError("arrivals fall somewhere", hint="sort the requests by arrival")
        return address, np.ascontiguousarray(writes), np.ascontiguousarray(requester), np.ascontiguousarray(arrival)


@dataclass(frozen=True)
class MemoryResult:
    """What a run of requests came to. Clocks are those of ``memory``.

    ``accepted``, ``issued``, ``completed``: per request, the clock at which it entered its queue, at which its column
    command was issued, and after the last byte was on the bus. ``outcome``: per request 0 hit, 1 closed row,
    2 conflict. ``commands``: [m, 4] of (clock, command, bank, row), bank -1 for all banks; empty unless asked for.
    """

    memory: Memory
    cycles: int
    refreshes: int
    is_write: NDArray[np.bool_]
    requester: Integers
    accepted: Integers
    issued: Integers
    completed: Integers
    outcome: Integers
    commands: Integers

    @property
    def bytes(self) -> int:
        return int(self.issued.size * self.memory.burst_bytes)

    @property
    def bytes_per_clock(self) -> float:
        return self.bytes / self.cycles if self.cycles else 0.0

    @property
    def percent_of_peak(self) -> float:
        return 100 * self.bytes_per_clock / self.memory.peak_bytes_per_clock

    @property
    def gigabytes_per_second(self) -> float:
        return self.bytes_per_clock / self.memory.clock_ns

    @property
    def latency(self) -> Integers:
        """Clocks from entering the queue to the last byte, per request."""
        return self.completed - self.accepted

    def counts(self, requester: int | None = None) -> dict[str, int]:
        """Requests by outcome, of one requester or of all."""
        chosen = self.outcome if requester is None else self.outcome[self.requester == requester]
        return {name: int((chosen == code).sum()) for code, name in enumerate(OUTCOMES)}

    @property
    def row_hit_rate(self) -> float:
        return self.counts()["hit"] / self.issued.size if self.issued.size else 0.0

    def by_requester(self) -> Mapping[int, dict[str, Any]]:
        """For each requester its requests, outcomes, and latency of reads in clocks (mean, median, 99th percentile,
        largest; None without reads)."""
        found = {}
        for number in np.unique(self.requester).tolist():
            mine = self.requester == number
            reads = self.latency[mine & ~self.is_write]
            names = ("mean", "median", "p99", "max")
            values = (reads.mean(), np.median(reads), np.percentile(reads, 99), reads.max()) if reads.size else ()
            latency = dict(zip(names, map(float, values), strict=True)) if reads.size else None
            counts = self.counts(number)
            found[number] = {"requests": int(mine.sum()), **counts, "read_latency_clocks": latency}
        return found

    def to_dict(self) -> dict[str, Any]:
        return {
            "memory": self.memory.name,
            "clock_ns": self.memory.clock_ns,
            "requests": int(self.issued.size),
            "cycles": self.cycles,
            "refreshes": self.refreshes,
            "bytes": self.bytes,
            "bytes_per_clock": round(self.bytes_per_clock, 4),
            "gigabytes_per_second": round(self.gigabytes_per_second, 4),
            "percent_of_peak": round(self.percent_of_peak, 3),
            "row_hit_rate": round(self.row_hit_rate, 5),
            "by_requester": {str(key): value for key, value in self.by_requester().items()},
        }
