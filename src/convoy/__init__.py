"""Trains ordinary PyTorch CNNs under strategies for parallel hardware.

Public names are loaded when they are first used, so that ``import convoy`` does not import PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convoy.comparison import Comparison as Comparison
    from convoy.comparison import Workload as Workload
    from convoy.comparison import compare as compare
    from convoy.data import open_data as open_data
    from convoy.errors import ConvoyError as ConvoyError
    from convoy.hardware.step import simulate as simulate
    from convoy.planning import plan as plan
    from convoy.strategies.base import Settings as Settings
    from convoy.strategies.base import Strategy as Strategy
    from convoy.strategies.bilayered import BiLayered as BiLayered
    from convoy.strategies.concurrent import Concurrent as Concurrent
    from convoy.strategies.hybrid import Hybrid as Hybrid
    from convoy.strategies.oracle import oracle as oracle
    from convoy.strategies.pipelined import Pipelined as Pipelined
    from convoy.strategies.sequential import Sequential as Sequential
    from convoy.strategies.speculative import Speculative as Speculative
    from convoy.training.callbacks import EarlyStopping as EarlyStopping
    from convoy.training.callbacks import KeepBest as KeepBest
    from convoy.training.history import History as History
    from convoy.training.trainer import Trainer as Trainer

__version__ = "0.1.0"

_HOME = {
    "BiLayered": "convoy.strategies.bilayered",
    "Concurrent": "convoy.strategies.concurrent",
    "Comparison": "convoy.comparison",
    "ConvoyError": "convoy.errors",
    "EarlyStopping": "convoy.training.callbacks",
    "History": "convoy.training.history",
    "Hybrid": "convoy.strategies.hybrid",
    "KeepBest": "convoy.training.callbacks",
    "Pipelined": "convoy.strategies.pipelined",
    "Sequential": "convoy.strategies.sequential",
    "Settings": "convoy.strategies.base",
    "Speculative": "convoy.strategies.speculative",
    "Strategy": "convoy.strategies.base",
    "Trainer": "convoy.training.trainer",
    "Workload": "convoy.comparison",
    "compare": "convoy.comparison",
    "open_data": "convoy.data",
    "oracle": "convoy.strategies.oracle",
    "plan": "convoy.planning",
    "simulate": "convoy.hardware.step",
}
__all__ = [
    "BiLayered",
    "Comparison",
    "Concurrent",
    "ConvoyError",
    "EarlyStopping",
    "History",
    "Hybrid",
    "KeepBest",
    "Pipelined",
    "Sequential",
    "Settings",
    "Speculative",
    "Strategy",
    "Trainer",
    "Workload",
    "__version__",
    "compare",
    "open_data",
    "oracle",
    "plan",
    "simulate",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'convoy' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
