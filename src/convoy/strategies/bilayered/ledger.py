"""Who trains which samples how often: plain data and arithmetic on ranges, no state of its own.

Samples are named by their *position* in an order drawn once by seed, so that a range is a random sample of the
data. A ``Segment`` says who will train a range and how many local passes over it are still to be begun. A local pass
is begun as a ``Job`` over all segments that its node holds; from then on its samples are counted there, as ``Slice``
of the job's own order (a permutation keyed by seed and pass, restricted to the job's ranges). So a pass can be
leased in pieces, and a dead node's rest handed on, and every sample of it is still trained exactly once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

FREE = -1
"""Owner of segments that nobody holds."""

Range: TypeAlias = "tuple[int, int]"
"""Positions from the first up to, not including, the second."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Positions ``start`` … ``stop`` − 1 of node ``owner``; ``left`` local passes over them are still to be begun, the
    first of them not before the owner's local pass ``first``."""

    start: int
    stop: int
    owner: int
    left: int
    first: int = 0

    @property
    def size(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Job:
    """A local pass over ``ranges``, in the order of pass ``number``; ``done`` of its ``size`` samples are merged."""

    id: int
    number: int
    ranges: tuple[Range, ...]
    size: int
    done: int = 0


@dataclass(frozen=True, slots=True)
class Slice:
    """Places ``start`` … ``stop`` − 1 in the order of job ``job``."""

    job: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


def batch_bounds(samples: int, batches: int) -> tuple[int, ...]:
    """Where allocation batches begin and end, batches + 1 positions; sizes differ by at most one, larger ones last."""
    size, larger = divmod(samples, batches)
    bounds = [0]
    for batch in range(batches):
        bounds.append(bounds[-1] + size + (batch >= batches - larger))
    return tuple(bounds)


def due(samples: int, batches: int, passes: int, batch: int, start: int, stop: int) -> list[tuple[int, int, int]]:
    """Parts of the range of allocation batch ``batch`` (from 1), each with the local passes it is to have.

    K' = passes + (batches − 1)/2 local passes; batch a takes part in K' − a + 1 of them. Where that is no whole
    number, a share of every range takes part once more, so that all ranges together come to passes·samples exactly.
    """
    bounds = batch_bounds(samples, batches)
    whole = passes + (batches - 1) // 2
    begun = sum((bounds[a] - bounds[a - 1]) * (whole - a + 1) for a in range(1, batches + 1))
    more, extra = divmod(passes * samples - begun, samples)
    left = whole - batch + 1 + more
    cut = start + stop * extra // samples - start * extra // samples
    return [(a, b, n) for a, b, n in ((start, cut, left + 1), (cut, stop, left)) if a < b]


def holdings(segments: Iterable[Segment]) -> Counter[int]:
    """By owner, the samples that it will still train in later passes."""
    counts: Counter[int] = Counter()
    for s in segments:
        if s.left > 0:
            counts[s.owner] += s.size
    return counts


def held(segments: Iterable[Segment], owner: int) -> int:
    """The same of one owner."""
    return holdings(segments)[owner]


def visits(segments: Iterable[Segment]) -> Counter[int]:
    """By owner, samples times passes still to be begun."""
    counts: Counter[int] = Counter()
    for s in segments:
        counts[s.owner] += s.size * s.left
    return counts


def move(segments: Sequence[Segment], donor: int, receiver: int, count: int) -> list[Segment]:
    """``segments`` with ``count`` of the donor's samples (from the back, those with passes left) at the receiver."""
    moved: list[Segment] = []
    for segment in reversed(segments):
        if segment.owner != donor or segment.left <= 0 or count <= 0:
            moved.append(segment)
            continue
        cut = max(segment.start, segment.stop - count)
        count -= segment.stop - cut
        moved.append(replace(segment, start=cut, owner=receiver, first=0))
        if cut > segment.start:
            moved.append(replace(segment, stop=cut))
    return tidy(reversed(moved))


def tidy(segments: Iterable[Segment]) -> list[Segment]:
    """Neighbours that agree in everything as one; finished ones too, since the ledger accounts for every position."""
    joined: list[Segment] = []
    for segment in segments:
        last = joined[-1] if joined else None
        if last and (last.stop, last.owner, last.left) == (
            segment.start,
            segment.owner,
            segment.left,
        ):
            same = last.first == segment.first or last.left == 0
            if same:
                joined[-1] = replace(last, stop=segment.stop)
                continue
        joined.append(segment)
    return joined


def split(piece: Slice, sizes: Iterable[int]) -> Iterator[Slice | None]:
    """``piece`` cut into parts of these sizes, which sum to its own; None for a size of 0."""
    start = piece.start
    for size in sizes:
        yield Slice(piece.job, start, start + size) if size else None
        start += size


def join(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """Ranges in rising order, touching ones as one."""
    joined: list[Range] = []
    for start, stop in sorted(ranges):
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return tuple(joined)
