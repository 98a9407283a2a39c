"""Ray is optional: imported when it is asked for, with the way to get it where it is missing."""

from __future__ import annotations

import warnings
from typing import Any

from convoy.errors import MachineError


def ray_module() -> Any:
    """The module ``ray``. Raises MachineError that names the extra where it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ray
    except ImportError as error:
        raise MachineError(
            f"engine 'ray' needs Ray, which cannot be imported: {error}", hint="pip install 'convoy-train[ray]'"
        ) from error
    return ray
