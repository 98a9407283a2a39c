"""Remote stages with threads for actors (``over_threads``), or in real actors of a local Ray (``over_ray``)."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest

from convoy.engines.ray.session import Session
from convoy.strategies.pipelined.remote import step as remote


def _fake_ray() -> ModuleType:
    path = Path(__file__).parents[3] / "engines" / "ray" / "fake_ray.py"
    spec = importlib.util.spec_from_file_location("fake_ray", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fake_ray"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def over_threads() -> Callable[..., Any]:
    """``with over_threads() as ray``: in this block a ``RemoteStep`` connects to a fresh fake."""
    kind = _fake_ray().FakeRay

    @contextmanager
    def block() -> Iterator[Any]:
        ray = kind()

        def connect(address: str | None = None, **options: Any) -> Session:
            return Session(ray, "test", False, lambda: None)

        with mock.patch.multiple(remote, connect=connect, ray_module=lambda: ray):
            yield ray

    return block


@pytest.fixture
def train(runs: ModuleType) -> Callable[..., Any]:
    """``runs.train`` with a ``RemoteStep``."""

    def run(*args: Any, **options: Any) -> Any:
        with mock.patch.object(runs, "PipelinedStep", remote.RemoteStep):
            return runs.train(*args, engine="ray", **options)

    return run
