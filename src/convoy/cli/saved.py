"""Trained networks as they lie on the disk: run folders, checkpoints in them, and exported weights.

Beside the weights a prediction must know which network they belong to and how images are prepared. A run folder
holds that in ``model.json``, an exported file in its metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from convoy.data import DataBundle
from convoy.errors import CheckpointError
from convoy.models import load
from convoy.training.checkpoint import Checkpoint, find_checkpoint
from convoy.training.files import machine_errors, write_json
from convoy.training.run_dir import RunDirectory
from convoy.training.snapshot import check_model, load_model

FACTS_FILE = "model.json"
METADATA_KEY = "convoy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What belongs to weights: the network, its classes, and how its images (C, H, W) are prepared. ``mean`` and
    ``deviation`` are per channel, in pixel values 0…255; ``data`` is what it was trained on."""

    model: str
    data: str
    classes: tuple[str, ...]
    sample_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @classmethod
    def of(cls, model: str, data: str, bundle: DataBundle) -> Facts:
        return cls(
            model=model,
            data=data,
            classes=bundle.classes,
            sample_shape=bundle.sample_shape,
            mean=bundle.mean,
            deviation=bundle.deviation,
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, text: str, where: Path) -> Facts:
        try:
            values = json.loads(text)
            given = {f.name: values[f.name] for f in fields(cls)}
            lists = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
            return cls(**{**given, **lists})
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{where} does not say what the network is: {error}") from error

    def build(self) -> nn.Module:
        channels, height, _ = self.sample_shape
        return load(self.model, classes=len(self.classes), channels=channels, image_size=height, seed=0)


@dataclass(frozen=True, slots=True)
class Saved:
    """Weights that were found, and what belongs to them, where that is known."""

    path: Path
    weights: Checkpoint
    facts: Facts | None


def write_facts(run: Path, facts: Facts) -> None:
    """``model.json``, unless it is there."""
    path = run / FACTS_FILE
    if not path.exists():
        with machine_errors(path):
            write_json(path, facts.to_dict())


def open_saved(given: str, which: str = "best") -> Saved:
    """A run folder (its "best" checkpoint where the run kept one, or the "latest"), a checkpoint, or a safetensors
    file. Raises CheckpointError."""
    path = Path(given)
    if path.is_file():
        weights, metadata = read_weights(path)
        text = metadata.get(METADATA_KEY)
        return Saved(path, weights, None if text is None else Facts.from_json(text, path))
    checkpoint = find_checkpoint(path, which)
    where = RunDirectory.open(checkpoint.path).path / FACTS_FILE
    if not where.is_file():
        return Saved(path, checkpoint, None)
    return Saved(path, checkpoint, Facts.from_json(where.read_text(encoding="utf-8"), where))


def read_weights(path: Path) -> tuple[Checkpoint, Mapping[str, str]]:
    """Tensors and metadata of a safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read as safetensors: {error}",
            hint="give a run folder or a file that convoy export wrote",
        ) from error
    return Checkpoint(path, tensors, {}), metadata


def load_weights(model: nn.Module, given: str) -> None:
    """Put the weights of a run or a safetensors file into ``model``, which they must fit name by name."""
    put(model, open_saved(given).weights)


def put(model: nn.Module, weights: Checkpoint) -> nn.Module:
    """``model`` with the weights in it. Raises CheckpointError, with the first name or shape that does not fit."""
    check_model(model.state_dict(), weights)
    load_model(model, weights.model)
    return model


def needs_facts(saved: Saved) -> Facts:
    """The facts, or CheckpointError where the file has none."""
    if saved.facts is None:
        raise CheckpointError(
            f"{saved.path} does not say which network its weights belong to",
            hint="give a run folder, or a file that convoy export wrote",
        )
    return saved.facts
