"""What speculation saved so far, by the clock: shown, never decided on."""

from __future__ import annotations

from statistics import median

from convoy.strategies.speculative.controller import Mode


class TimeSaved:
    """Seconds a sample of exact and of speculated mini-batches, of the last ``LAST`` each; the first of either compile
    and allocate, and do not count."""

    LAST, SKIP = 64, 3

    def __init__(self) -> None:
        self._seen: dict[Mode, list[float]] = {}

    def add(self, mode: Mode, seconds: float, samples: int) -> None:
        times = self._seen.setdefault(mode, [])
        times.append(seconds / samples)
        if len(times) > self.LAST + self.SKIP:
            del times[self.SKIP]

    def saved(self) -> float | None:
        """Share of the time of an exact mini-batch on the same engines; None until both were seen."""
        exact, speculated = (self._seen.get(mode, [])[self.SKIP :] for mode in ("exact", "speculate"))
        if not exact or not speculated:
            return None
        return 1.0 - median(speculated) / median(exact)
