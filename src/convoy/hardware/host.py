"""The processor that the memory serves, by a roofline (Williams, Waterman and Patterson, CACM 2009), and energy."""

from __future__ import annotations

from dataclasses import dataclass, fields

from convoy.errors import OptionError


@dataclass(frozen=True, slots=True)
class Host:
    """``flops_per_second``: peak at the precision that convolutions are computed in; ``efficiency``: the share of it
    that they reach, forward and backward. ``bandwidth_share``: of the memory's peak that element-wise kernels reach.
    ``staging_bytes``: how much data convolutions hold or have under way on the chip, so that they can go on while
    the memory serves others. ``latency_seconds``: from a request of the host to what it does with the answer."""

    name: str
    source: str
    flops_per_second: float
    efficiency: float
    bandwidth_share: float
    staging_bytes: int
    latency_seconds: float = 5e-7

    def __post_init__(self) -> None:
        _check("host", self, shares=("efficiency", "bandwidth_share"))

    def compute_seconds(self, flops: float) -> float:
        return flops / (self.flops_per_second * self.efficiency)


@dataclass(frozen=True, slots=True)
class Energy:
    """``memory_picojoules_per_bit``: for data that cross the interface, opening rows included; ``inner_share``: of that
    for data that stay with the bank. ``unit_picojoules``: per operation of a unit. ``busy_watts`` and ``idle_watts``:
    the host with and without work, memory not counted."""

    source: str
    memory_picojoules_per_bit: float
    inner_share: float
    unit_picojoules: float
    busy_watts: float
    idle_watts: float

    def __post_init__(self) -> None:
        _check("energy", self, shares=("inner_share",))
        if self.idle_watts > self.busy_watts:
            raise OptionError(
                f"the host needs {self.idle_watts:g} W idle but {self.busy_watts:g} W busy", hint="exchange the two"
            )


def _check(what: str, values: Host | Energy, shares: tuple[str, ...]) -> None:
    for field in fields(values):
        value = getattr(values, field.name)
        if field.name in ("name", "source"):
            continue
        whole = field.name == "staging_bytes"
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not value > 0:
            raise OptionError(
                f"the {what}'s {field.name} is {value!r}, but must be a {'whole ' if whole else ''}number above 0",
                hint="see the presets",
            )
        if field.name in shares and value > 1:
            raise OptionError(
                f"the {what}'s {field.name} is {value!r}, but it is a share of a peak and cannot be above 1",
                hint="write 0.8 for 80 %",
            )
