"""Equal engines of multiply-accumulate units, each with its share of one memory: what an accelerator for speculative
training has, where forward and backward pass run side by side."""

from __future__ import annotations

from dataclasses import dataclass, fields

from convoy.errors import OptionError


@dataclass(frozen=True, slots=True)
class Engines:
    """``count`` engines of ``units`` multiply-accumulate units each, of which a task keeps the share ``utilisation``
    busy. ``bytes_per_second``: what each engine has of the memory. A task takes the longer of computing and moving its
    elements of ``element_bytes`` (roofline: Williams, Waterman and Patterson, CACM 2009)."""

    name: str
    source: str
    count: int
    units: int
    clock_hz: float
    utilisation: float
    bytes_per_second: float
    element_bytes: int

    def __post_init__(self) -> None:
        for field in fields(self)[2:]:
            value, whole = getattr(self, field.name), field.type == "int"
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not value > 0:
                kind = "a whole number of 1 or more" if whole else "a number above 0"
                raise OptionError(f"engines {self.name} have {field.name} = {value!r}", hint=f"give {kind}")
        if self.utilisation > 1:
            raise OptionError(
                f"engines {self.name} have utilisation = {self.utilisation!r}", hint="it is a share: 1 at most"
            )

    def seconds(self, operations: float, elements: float) -> float:
        """Of a task on one engine. A multiply-accumulate is two operations."""
        computing = operations / (2 * self.units * self.clock_hz * self.utilisation)
        return max(computing, elements * self.element_bytes / self.bytes_per_second)


TWO_ENGINES = Engines(
    name="two-engines",
    source="Park and Suh, IEEE Access 8, 2020, built hardware for speculative backpropagation; its sizes were not at "
    "hand. Assumed: an FPGA board with DDR4-2400 of 64 bit (19.2 GB/s, half for each engine), 200 MHz, 256 "
    "multiply-accumulate units an engine, 80 % of them busy, float32",
    count=2,
    units=256,
    clock_hz=200e6,
    utilisation=0.8,
    bytes_per_second=9.6e9,
    element_bytes=4,
)

PRESETS = {TWO_ENGINES.name: TWO_ENGINES}
