"""Model, optimizer and synthetic batches of ``benchmarks/speed``, under a name that does not hide ours."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_FILE = Path(__file__).resolve().parents[1] / "speed" / "contenders.py"
_spec = importlib.util.spec_from_file_location("benchmarks_speed_contenders", _FILE)
assert _spec is not None and _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)

BATCHES, batches_of, model_of, optimizer_of = (
    getattr(_module, name) for name in ("BATCHES", "batches_of", "model_of", "optimizer_of")
)
