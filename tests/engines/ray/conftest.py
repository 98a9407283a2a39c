"""Ray as threads of this process, for tests of everything but Ray itself."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def _load() -> ModuleType:
    path = Path(__file__).with_name("fake_ray.py")
    spec = importlib.util.spec_from_file_location("fake_ray", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fake_ray"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fake_ray() -> Any:
    """A fresh ``FakeRay``; what is left of it is ended."""
    ray = _load().FakeRay()
    yield ray
    for actor in ray.actors:
        actor.die()
