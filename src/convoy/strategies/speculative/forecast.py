"""What two engines save, from the operations of a mini-batch: list scheduling by the longest way to the end."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush

from convoy.schedule.recurring import upward_ranks


def makespan(
    seconds: Sequence[float], successors: Sequence[Sequence[int]], waits: Sequence[int], engines: int
) -> float:
    """How long ``engines`` equal engines take, each taking the most urgent ready action (Topcuoglu et al. 2002)."""
    ranks, left = upward_ranks(seconds, successors), list(waits)
    ready: list[tuple[float, int]] = []
    running: list[tuple[float, int]] = []
    for place, count in enumerate(left):
        if not count:
            heappush(ready, (-ranks[place], place))
    now = 0.0
    while ready or running:
        while ready and len(running) < engines:
            place = heappop(ready)[1]
            heappush(running, (now + seconds[place], place))
        now, done = heappop(running)
        for after in successors[done]:
            left[after] -= 1
            if not left[after]:
                heappush(ready, (-ranks[after], after))
    return now
