"""From numbers to places and their labels."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear map from [low, high] to [start, stop] (pixels); ``low`` < ``high``."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)


def span(values: Iterable[float], *, zero: bool = False, margin: float = 0.0) -> tuple[float, float]:
    """The least and the greatest of ``values`` (0 among them with ``zero``), never equal, with a margin (a share of
    the distance) on the sides that are not 0."""
    found = [value for value in values if math.isfinite(value)]
    low, high = (min(found), max(found)) if found else (0.0, 1.0)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        pad = abs(low) * 0.1 or 0.5
        return (0.0 if zero and low == 0 else low - pad), high + pad
    pad = (high - low) * margin
    return (low if zero and low == 0 else low - pad), (high if zero and high == 0 else high + pad)


def ticks(low: float, high: float, about: int = 5, *, whole: bool = False) -> list[float]:
    """Round numbers in [low, high], steps of 1, 2 or 5 times a power of ten, about so many; ``whole`` ones only."""
    raw = (high - low) / max(about, 1)
    if not math.isfinite(raw) or raw <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    step = max(step, 1.0) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def label(value: float, *, percent: bool = False) -> str:
    """A number as short as it can be read: ``1500000`` → ``1.5M``, a share of 0.955 with ``percent`` → ``95.5%``."""
    if percent:
        return f"{value * 100:.10g}%"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.4g}{unit}"
    return f"{value:.4g}"
