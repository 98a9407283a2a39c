"""Where data sets lie: ``KIND:DIR`` on the command line, else the folder CONVOY_DATA, else ./data."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from convoy.errors import DataError

VARIABLE = "CONVOY_DATA"


def root(kind: str, given: str | None) -> Path:
    """The folder to look in, which exists; DataError otherwise."""
    if given:
        folder, said = Path(given).expanduser(), f"the folder {given!r}"
        hint = f"check the path after '{kind}:'"
    elif os.environ.get(VARIABLE):
        folder, said = Path(os.environ[VARIABLE]).expanduser(), f"the folder {os.environ[VARIABLE]!r} ({VARIABLE})"
        hint = f"correct {VARIABLE} or say where the files are: {kind}:DIR"
    else:
        folder, said = Path("data"), f"no folder was given for {kind} and './data'"
        hint = f"say where the files are: {kind}:DIR, or set {VARIABLE}; 'digits' needs no files"
    if not folder.exists():
        raise DataError(f"{said} does not exist", hint=hint)
    if not folder.is_dir():
        raise DataError(f"{said} is a file, not a folder", hint=hint)
    return folder


def find(folder: Path, below: tuple[str, ...], holds: Callable[[Path], bool], what: str, hint: str) -> Path:
    """The first of ``folder`` and its sub-folders ``below`` for which ``holds`` is true; DataError if none is."""
    for place in (folder, *(folder / name for name in below)):
        if place.is_dir() and holds(place):
            return place
    raise DataError(f"no {what} in '{folder}' or its sub-folders {', '.join(below)}", hint=hint)


def unreadable(path: Path, error: Exception) -> DataError:
    """The error for a file that the system does not let us read."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    return DataError(f"cannot read '{path}': {reason}", hint="check that the file is there and may be read")
