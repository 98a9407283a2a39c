"""numba, where it is asked for: the extra ``simulate``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from convoy.errors import MachineError

F = TypeVar("F", bound=Callable[..., Any])

try:
    import numba
except ImportError as problem:  # pragma: no cover - the development environment has it
    raise MachineError(
        "the compiled simulator needs numba, which is not installed", hint="pip install convoy-train[simulate]"
    ) from problem


def compiled(function: F) -> F:
    """``function`` compiled when it is first called, and kept on disk for later processes.

    numba looks at the file of a function only, not at those of the functions it calls: what calls each other lives in
    one file.
    """
    return cast(F, numba.njit(cache=True)(function))
