"""Where the server's journal lies: in memory where there is room, else with the temporary files."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

MEMORY = Path("/dev/shm")
PREFIX = "convoy-journal-"
_ROOM = 20  # sets of weights that have to fit where the journal keeps two, beside those that Ray has there


def journal_folder(weights_bytes: int, memory: Path = MEMORY) -> Path:
    """A new folder, named after this process, for the journal of a set of weights. In memory it outlives a process, and
    nothing waits for a disk: the journal has to survive the server only; with this machine, the driver would be gone
    too. What killed drivers left there is removed."""
    place = None
    with suppress(OSError):
        if os.access(memory, os.W_OK):
            _sweep(memory)
            if shutil.disk_usage(memory).free > _ROOM * weights_bytes:
                place = memory
    return Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=place))


def _sweep(memory: Path) -> None:
    for folder in memory.glob(f"{PREFIX}*-*"):
        process = folder.name.removeprefix(PREFIX).partition("-")[0]
        if process.isdigit() and not _runs(int(process)):
            shutil.rmtree(folder, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True
