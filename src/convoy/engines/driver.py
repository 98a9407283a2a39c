"""How many intra-op threads the driver has while its workers are busy: one.

A parallel region leaves its team of OpenMP threads spinning for some milliseconds, in case another follows at once. In
the driver's thread, bringing images into another memory format is enough of a region, and the team then takes the
workers' cores: 6 ms of a step on two cores, whatever its length.
"""

from __future__ import annotations

import torch

from convoy.engines.engine import Engine


class DriverThreads:
    """The number of the thread that made this; ``alone`` and ``own`` are called there, and may be called twice."""

    def __init__(self) -> None:
        self._own: int | None = None

    def alone(self, engine: Engine | None) -> None:
        """From now on one thread, if ``engine`` works beside the driver."""
        if self._own is None and engine is not None and engine.beside:
            self._own = torch.get_num_threads()
            torch.set_num_threads(1)

    def own(self) -> None:
        """Nothing is in flight: as many as before."""
        if self._own is not None:
            torch.set_num_threads(self._own)
            self._own = None
