"""Which of the user's modules have to travel with a model, because an actor could not import them."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

_OWN = Path(__file__).parents[3]


def modules_of(model: nn.Module, *others: Any) -> set[ModuleType]:
    """The modules that define the model's classes and ``others`` (a loss, an optimizer) and belong to no installed
    package."""
    found = set()
    for name in {name for thing in (model, *others) for name in _names(thing)}:
        module = sys.modules.get(name)
        if module is not None and name != "__main__" and not _installed(module):  # Ray itself takes __main__ along
            found.add(module)
    return found


def _names(thing: Any) -> Iterator[str]:
    """The names of the modules that define ``thing`` and what it is made of."""
    while isinstance(thing, partial):
        thing = thing.func
    parts = thing.modules() if isinstance(thing, nn.Module) else (thing,)
    for kind in (kind for part in parts for kind in (part, *type(part).__mro__)):
        name = getattr(kind, "__module__", None)
        if isinstance(name, str):
            yield name


def _installed(module: ModuleType) -> bool:
    path = getattr(module, "__file__", None)
    if path is None:
        return True
    places = [sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return any(Path(path).is_relative_to(place) for place in (*places, str(_OWN)))
