"""What travels by value with a model, and how a process is made to compute as the driver does."""

from __future__ import annotations

import sys
from functools import partial
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convoy.models import build
from convoy.strategies.pipelined.remote.modules import modules_of
from convoy.strategies.pipelined.remote.numbers import Numbers


def names(*things: object) -> set[str]:
    return {module.__name__ for module in modules_of(*things)}  # type: ignore[arg-type]


def test_installed_packages_are_imported_there() -> None:
    model = nn.Sequential(build("lenet5"), nn.ReLU())
    assert names(model, F.cross_entropy, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), 0.1)) == set()


def test_the_users_own_modules_travel(runs: ModuleType) -> None:
    model = nn.Sequential(runs.Chain(2, 0.0, False))
    assert names(model, F.cross_entropy) == {runs.__name__}
    assert names(nn.ReLU(), runs.loss) == {runs.__name__}


def test_a_class_travels_with_what_it_is_derived_from(runs: ModuleType) -> None:
    class Derived(runs.Chain):  # type: ignore[name-defined,misc]
        pass

    assert names(Derived(2, 0.0, False)) == {runs.__name__, __name__}


def test_the_main_program_is_rays_affair(runs: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(nn.Module):
        pass

    monkeypatch.setattr(Mine, "__module__", "__main__")
    assert names(Mine()) == set()
    monkeypatch.setattr(Mine, "__module__", "gone")
    assert "gone" not in sys.modules and names(Mine()) == set()


def test_what_a_loss_is_wrapped_around_travels_too(runs: ModuleType) -> None:
    assert names(nn.ReLU(), partial(partial(runs.loss))) == {runs.__name__}
    assert names(nn.ReLU(), nn.Sequential(runs.Chain(2, 0.0, False))) == {runs.__name__}


def test_a_process_is_made_to_compute_alike() -> None:
    before = Numbers.here()
    try:
        other = Numbers("float64", "medium", True, True, False)
        other.apply()
        assert Numbers.here() == other
        assert torch.get_default_dtype() is torch.float64 and torch.are_deterministic_algorithms_enabled()
        assert torch.get_float32_matmul_precision() == "medium" and not torch.backends.mkldnn.enabled
    finally:
        before.apply()
    assert Numbers.here() == before
