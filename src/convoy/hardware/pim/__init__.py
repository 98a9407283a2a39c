"""Units in memory: what they cost to use, their kernels, and how long those take."""

from __future__ import annotations

from convoy.hardware.pim.kernels import KERNELS, Kernel, pooling, round_clocks
from convoy.hardware.pim.rounds import commands, kernel_clocks, refresh_clocks, rounds
from convoy.hardware.pim.units import Units

__all__ = [
    "KERNELS",
    "Kernel",
    "Units",
    "commands",
    "kernel_clocks",
    "pooling",
    "refresh_clocks",
    "round_clocks",
    "rounds",
]
