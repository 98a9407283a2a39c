"""numba, where it is asked for: the extra ``simulate``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from convoy.errors import MachineError

F = TypeVar("F", bound=Callable[..., Any])

try:
    import numba
except ImportError as problem:  # pragma: no cover - the development environment has it
    raise MachineError(
        "the compiled simulator needs numba, which is not installed", hint="pip install convoy-train[simulate]"
    ) from problem


def _folder() -> Path | None:
    """Where compiled code is kept: a folder named after the sources of this package, because numba looks at the file of
    a function only, not at those of the functions it calls. None where nothing can be written there."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for source in sorted(here.rglob("*.py")):
        digest.update(source.read_bytes())
    folder = here / "__pycache__" / digest.hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


_FOLDER = _folder()


def compiled(function: F) -> F:
    """``function`` compiled when it is first called, and kept on disk for later processes."""
    config: Any = numba.config
    before = config.CACHE_DIR
    config.CACHE_DIR = before or str(_FOLDER or "")
    try:
        return cast(F, numba.njit(cache=True)(function))
    finally:
        config.CACHE_DIR = before
