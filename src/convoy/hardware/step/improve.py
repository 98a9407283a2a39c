"""Our own schedule: weight gradients moved to where the units leave the host waiting, and groups chosen per layer.

A weight gradient is needed by nothing in the backward pass but the update. So it may wait until a later layer whose
units have more to do than that layer's convolutions take; there it runs while the units work. What that costs is
memory: feature maps and gradients live on until then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from convoy.hardware.description import Hardware
from convoy.hardware.step import layout as L
from convoy.hardware.step.parts import build, equal
from convoy.hardware.tasks import HostTask, Segment, Step

SHARES: tuple[tuple[float, ...], ...] = (
    *(equal(n) for n in (1, 2, 4, 8)),
    (4, 2, 1, 1),  # the last group is what the units do after the host: a small one ends sooner
    (8, 4, 2, 1, 1),
    (3, 1),
)
QUARTERS = 4
SLACKS = (0.0, 0.25, 0.5)  # see ``rearranged``; which is best is tried


def rearranged(step: Step, hardware: Hardware, slack: float) -> Step:
    """``step`` with weight gradients moved to later segments where they cover the units' work. All tasks are there,
    some of them in parts by samples. ``slack``: how much more computing than work for the memory a segment should
    have, as a share of the units' work, because the units end later than the host."""
    segments = [Segment(s.name, s.phase, list(s.host), list(s.units)) for s in step.segments]
    waiting: deque[HostTask] = deque()
    for segment in segments[step.forward :]:
        waiting.extend(task for task in segment.host if task.phase == "weight_grad")
        segment.host = [task for task in segment.host if task.phase != "weight_grad"]
        if not segment.host:  # nothing to run the units beside: at least the oldest that waits
            if waiting:
                segment.host.append(waiting.popleft())
            continue
        compute, memory, units = loads(segment, hardware)
        units *= 1 + slack
        while waiting and compute < units + memory:
            task = waiting.popleft()
            one, its = _alone(task, hardware)
            wanted = min(1.0, max(units + memory - compute, 0.0) / max(one - its, 1e-9)) if one > its else 1.0
            quarters = min(QUARTERS, max(1, round(wanted * QUARTERS)))
            if quarters < QUARTERS:
                waiting.appendleft(_part(task, (QUARTERS - quarters) / QUARTERS))
                task = _part(task, quarters / QUARTERS)
            segment.host.append(task)
            compute, memory = compute + one * quarters / QUARTERS, memory + its * quarters / QUARTERS
    if waiting:
        segments.append(Segment("weight gradients", "weight_grad", list(waiting)))
    return replace(step, segments=tuple(s for s in segments if s.host or s.units))


def loads(segment: Segment, hardware: Hardware) -> tuple[float, float, float]:
    """Clocks of computing, of the host's data on the bus, and of the units' rounds, each alone and without waiting."""
    parts = build(segment, hardware, equal(1), serial=True)
    burst = hardware.memory.burst_clocks
    return (
        float(parts.host[:, L.COMPUTE].sum()),
        float(parts.requests * burst),
        float((parts.units[:, L.ROUNDS] * parts.units[:, L.ROUND_CLOCKS]).sum()),
    )


def bound(segments: Sequence[Segment], hardware: Hardware) -> float:
    """Clocks below which no order of these tasks can come: all computing, or all that goes through the memory."""
    each = [loads(segment, hardware) for segment in segments]
    return max(sum(c for c, _, _ in each), sum(m + u for _, m, u in each))


def step_bound(step: Step, hardware: Hardware) -> float:
    """The same for a step: layer by layer forward, where each needs all of the one before; the backward pass as a
    whole, because weight gradients may be done at any time."""
    forward = sum(bound([segment], hardware) for segment in step.segments[: step.forward])
    return forward + bound(step.segments[step.forward :], hardware)


def _alone(task: HostTask, hardware: Hardware) -> tuple[float, float]:
    compute, memory, _ = loads(Segment("", task.phase, [task]), hardware)
    return compute, memory


def _part(task: HostTask, share: float) -> HostTask:
    """So much of the samples. The weights' gradient is written by every part."""
    flops, reads = round(task.flops * share), round(task.reads * share)
    return replace(task, flops=flops, reads=reads, part=task.part * share, origin=task.key)
