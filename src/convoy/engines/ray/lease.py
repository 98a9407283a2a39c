"""Who has been silent for too long. No clock and no threads of its own: the time is passed in."""

from __future__ import annotations

from collections.abc import Iterator


class Leases:
    """A lease for every name, renewed whenever it is heard of.

    Only time in which the watcher itself ran counts: between two looks at most ``stride`` seconds. A machine that was
    put to sleep, or a process that was stopped, does not find everybody else dead when it wakes.
    """

    def __init__(self, seconds: float, stride: float = 2.0) -> None:
        self.seconds = seconds
        self._stride = stride
        self._looked: float | None = None
        self._time = 0.0  # of the watcher, in seconds
        self._heard: dict[str, float] = {}

    def heard(self, name: str) -> None:
        """Grant or renew."""
        self._heard[name] = self._time

    def drop(self, name: str) -> None:
        """No longer of interest."""
        self._heard.pop(name, None)

    def silent(self, name: str) -> float:
        """Seconds since it was heard of."""
        return self._time - self._heard[name]

    def look(self, now: float) -> list[str]:
        """The names whose lease is over at ``now`` seconds of any steady clock."""
        if self._looked is not None:
            self._time += min(max(now - self._looked, 0.0), self._stride)
        self._looked = now
        return [name for name in self._heard if self.silent(name) > self.seconds]

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._heard))
