"""A segment of a training step as parts for the engine: requests, clocks and rounds of one pseudo-channel.

The host's task that comes first is cut into groups of output channels, if units have something to do with them. Each
group of a convolution needs all its inputs, which are read again for every group, unless they fit on the chip. The
units carry out, group by group, all their kernels on the channels of that group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

import numpy as np

from convoy.hardware.description import Hardware
from convoy.hardware.memory.address import Integers
from convoy.hardware.pim.kernels import Kernel, round_clocks
from convoy.hardware.pim.rounds import refresh_clocks
from convoy.hardware.step.layout import HOST_COLUMNS, UNIT_COLUMNS
from convoy.hardware.tasks import LANE_BLOCK, HostTask, Segment, UnitTask


@dataclass(frozen=True)
class Parts:
    """``host``: [parts, 7], ``units``: [parts, 6] (columns in ``layout``). ``owners``: for each part of the units the
    index of its task; ``kernels``: its kernel. ``host_owners``: as owners. ``groups``: shares of the channels."""

    host: Integers
    units: Integers
    host_owners: tuple[int, ...]
    owners: tuple[int, ...]
    groups: tuple[float, ...]
    kernels: tuple[Kernel, ...]

    @property
    def requests(self) -> int:
        return int(self.host[:, 0].sum() + self.host[:, 2].sum())


def group_shares(channels: int, wanted: Sequence[float]) -> tuple[float, ...]:
    """``wanted`` shares of the channels, in whole blocks of lanes; groups without a block fall away."""
    blocks = ceil(channels / LANE_BLOCK)
    ends, total = [0], 0.0
    for share in wanted:
        total += share
        ends.append(min(blocks, round(total / sum(wanted) * blocks)))
    return tuple((high - low) / blocks for low, high in pairwise(ends) if high > low)


def equal(groups: int) -> tuple[float, ...]:
    return (1.0,) * groups


def build(segment: Segment, hardware: Hardware, wanted: Sequence[float], *, serial: bool, reread: bool = True,
          copies: bool = False) -> Parts:  # fmt: skip
    """The parts of ``segment``. ``serial``: the units wait for all tasks of the host, in one group. ``reread``: whether
    inputs are read again for every group. ``copies``: feature maps that both sides use are copied by the host."""
    cut = bool(segment.units) and bool(segment.host) and segment.host[0].channels > 1 and not serial
    shares = group_shares(segment.host[0].channels, wanted) if cut else (1.0,)
    host: list[list[int]] = []
    host_owners: list[int] = []
    for number, task in enumerate(segment.host):
        for share in shares if number == 0 else (1.0,):
            host.append(_host_part(task, hardware, share, reread and number == 0, len(host)))
            host_owners.append(number)
    if copies and segment.units and segment.host:
        moved = 2 * (segment.host[0].writes + _last_elements(segment.units))
        bursts = _bursts(moved / 2, hardware)
        host.append([max(1, bursts), 0, bursts, 0, 0, 0, 0])
        host_owners.append(0)
    last = len(host) - 1
    units: list[list[int]] = []
    owners: list[int] = []
    kernels: list[Kernel] = []

    def put(index: int, share: float, needs: int) -> None:
        for kernel, elements in segment.units[index].kernels:
            row = _unit_part(kernel, elements * share, segment.units[index], share, hardware, needs)
            if row is not None:
                units.append(row)
                owners.append(index)
                kernels.append(kernel)

    indices = range(len(segment.units))
    if serial or not segment.host:
        for index in indices:
            put(index, 1.0, last)
    else:
        for index in indices:
            put(index, 1.0 - segment.units[index].fresh, -1)
        for group, share in enumerate(shares):
            for index in indices:
                put(index, share * segment.units[index].fresh, group)
    return Parts(
        np.array(host, np.int64).reshape(-1, HOST_COLUMNS),
        np.array(units, np.int64).reshape(-1, UNIT_COLUMNS),
        tuple(host_owners),
        tuple(owners),
        shares,
        tuple(kernels),
    )


def scaled(parts: Parts, factor: float) -> Parts:
    """A window: every part made smaller by ``factor``, fixed costs as they are."""
    host, units = parts.host.copy(), parts.units.copy()
    host[:, :4] = np.rint(host[:, :4] * factor).astype(np.int64)
    host[:, 0] = np.maximum(host[:, 0], 1)
    host[:, 1] = np.minimum(host[:, 1], host[:, 0])
    units[:, 0] = np.maximum(np.rint(units[:, 0] * factor).astype(np.int64), 1)
    return Parts(host, units, parts.host_owners, parts.owners, parts.groups, parts.kernels)


def _host_part(task: HostTask, hardware: Hardware, share: float, reread: bool, number: int) -> list[int]:
    whole = task.reads * hardware.element_bytes
    again = reread and not task.own_inputs and whole > hardware.host.staging_bytes
    reads = _bursts(task.reads * (1.0 if again else share), hardware)
    weights = _bursts(task.weights * share, hardware)
    writes = _bursts(task.writes * share, hardware)
    compute = round(hardware.host_seconds(task) * share * hardware.clocks_per_second)
    bursts = hardware.memory.bytes // hardware.memory.burst_bytes
    start = 0 if again else number * reads
    places = (start % bursts, bursts // 3 + number * weights, 2 * bursts // 3 + number * writes)
    # Compute is that of all channels together: they share the work evenly.
    return [max(1, reads + weights), min(weights, max(1, reads + weights)), writes, compute, places[0], *places[1:]]


def _bursts(elements: float, hardware: Hardware) -> int:
    return ceil(elements * hardware.element_bytes / hardware.channels / hardware.memory.burst_bytes)


def _unit_part(
    kernel: Kernel, elements: float, task: UnitTask, share: float, hardware: Hardware, needs: int
) -> list[int] | None:
    if elements <= 0:
        return None
    units, memory = hardware.units, hardware.memory
    rounds = ceil(elements / hardware.channels / units.round_elements(memory))
    fixed = 0
    if kernel.sums:
        # The host leaves the units' mode, reads the partial sums of every unit, and writes back two values a channel.
        blocks = ceil(task.channels * share / LANE_BLOCK)
        bursts = blocks * (kernel.sums * units.per_channel(memory) + 2)
        latency = round(hardware.host.latency_seconds * hardware.clocks_per_second)
        fixed = units.leave + latency + bursts * memory.burst_clocks + units.enter_programmed
    wrote = kernel.steps[-1][0] == "W"
    clocks = round_clocks(kernel, memory, units.registers)
    return [rounds, clocks, fixed, needs, kernel_number(kernel), refresh_clocks(memory, wrote=wrote)]


_NUMBERS: dict[str, int] = {}


def kernel_number(kernel: Kernel) -> int:
    """A number for each name of a kernel: units that go on with the same need no new program."""
    return _NUMBERS.setdefault(kernel.name, len(_NUMBERS))


def _last_elements(units: Sequence[UnitTask]) -> int:
    return max((elements for _, elements in units[-1].kernels), default=0)
