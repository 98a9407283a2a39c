"""Who runs on which core, other programs that keep cores busy, and what the loopback carried."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_SPIN = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


def pin(process: int, core: int) -> None:
    """All threads of a process (0: this one) onto one core; later ones of theirs go there too."""
    for thread in Path(f"/proc/{process or 'self'}/task").iterdir():
        with suppress(OSError):
            os.sched_setaffinity(int(thread.name), {core})


@contextmanager
def busy(cores: Iterable[int]) -> Iterator[None]:
    """An endless loop on each of these cores, for each time that it is named."""
    loops = [subprocess.Popen([sys.executable, "-c", _SPIN, str(core)]) for core in cores]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def sent() -> int:
    """Bytes that the loopback has carried so far."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name.strip() == "lo":
            return int(rest.split()[8])
    return 0
