"""What all tests share: one thread per operator, reproducible hypothesis, and skips that say why."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Small tensors on several threads are slower, and how many there are must not change what is tested.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "convoy",
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile("search", settings.get_profile("convoy"), derandomize=False, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "convoy"))


# A shell that starts the tests in the background has them ignore Ctrl-C; some of them are about Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


def data_folder() -> Path:
    """Where real data sets lie: CONVOY_DATA, else ./data."""
    return Path(os.environ.get("CONVOY_DATA", "data"))


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    skips = {}
    marked = {mark.name for item in items for mark in item.iter_markers()}
    if "data" in marked and not data_folder().is_dir():
        skips["data"] = f"no data sets: {data_folder()} does not exist; set CONVOY_DATA"
    if "ray" in marked and importlib.util.find_spec("ray") is None:
        skips["ray"] = "Ray is not installed: pip install 'convoy-train[ray]'"
    if "gpu" in marked and not _cuda():
        skips["gpu"] = "no CUDA device"
    for item in items:
        for name, reason in skips.items():
            if item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def same_values() -> Callable[[Any, Any], None]:
    """``same_values(a, b)``: nested dicts and lists hold the same, tensors bit for bit."""
    import torch

    def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict):
            for key, item in value.items():
                yield from flat(item, f"{path}.{key}")
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                yield from flat(item, f"{path}.{index}")
        else:
            yield path, value

    def compare(one: Any, other: Any) -> None:
        a, b = dict(flat(one)), dict(flat(other))
        assert a.keys() == b.keys()
        for path, value in a.items():
            equal = torch.equal(value, b[path]) if isinstance(value, torch.Tensor) else value == b[path]
            assert equal, path

    return compare
