"""Checkpoints: a folder with ``model.safetensors``, ``state.safetensors`` and ``state.json``. No pickle.

``model.safetensors`` holds the model's ``state_dict`` under its own names and loads into the plain model.
``state.json`` holds everything else as plain values, its tensors being in ``state.safetensors``, with the size and
SHA-256 of the other files and of itself: a checkpoint is read whole and right, or not at all.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from convoy.errors import CheckpointError
from convoy.training.codec import contiguous_copy, dense_strides, pack, unpack, with_strides
from convoy.training.files import machine_errors, remove_directory, remove_leftovers, write_directory

FORMAT = 1
MODEL_FILE, TENSORS_FILE, STATE_FILE = "model.safetensors", "state.safetensors", "state.json"
_NAME = re.compile(r"^(\d{8,})(?:-(\d+))?$")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and found whole. ``model`` is the state_dict, ``state`` what was stored beside."""

    path: Path
    model: Mapping[str, Any]
    state: Mapping[str, Any]


def save_checkpoint(
    folder: Path, batches: int, model: Mapping[str, Any], state: Mapping[str, Any], *, name: str | None = None
) -> Path:
    """Write a checkpoint into ``folder``, all or nothing, and return its path. None that exists is touched.

    ``batches``: mini-batches trained so far, which name it. Raises MachineError when the disk refuses, CheckpointError
    for a state that only pickle could hold.
    """
    weights: dict[str, torch.Tensor] = {}
    strides: dict[str, list[int]] = {}
    extra: dict[str, Any] = {}
    tensors: dict[str, torch.Tensor] = {}
    for key, value in model.items():
        if isinstance(value, torch.Tensor):
            weights[key] = contiguous_copy(value)
            order = dense_strides(value)
            if order is not None:
                strides[key] = list(order)
        else:
            extra[key] = pack(value, tensors, f"model.{key}")
    body = {"model": {"strides": strides, "extra": extra}, "state": pack(dict(state), tensors, "state")}
    files = {
        MODEL_FILE: safetensors.torch.save(weights, metadata={"format": "pt"}),
        TENSORS_FILE: safetensors.torch.save(tensors),
    }
    listed = {file: {"bytes": len(content), "sha256": _digest(content)} for file, content in files.items()}
    content = {"files": listed, **body}
    sealed = {"format": FORMAT, "sha256": _digest(_dump(content)), "content": content}
    files[STATE_FILE] = _dump(sealed)
    target = folder / (name or free_name(folder, batches))
    with machine_errors(target):
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        write_directory(target, files)
    return target


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the checkpoint in the folder ``path``. Raises CheckpointError when anything is missing or damaged."""
    sealed = _json(path / STATE_FILE)
    if not isinstance(sealed, dict) or "content" not in sealed:
        raise _damaged(path, f"{STATE_FILE} is not a checkpoint's")
    if sealed.get("format") != FORMAT:
        raise CheckpointError(
            f"checkpoint {path} has format {sealed.get('format')!r}, this version reads {FORMAT}",
            hint="use the version of convoy that wrote it",
        )
    content = sealed["content"]
    if _digest(_dump(content)) != sealed.get("sha256"):
        raise _damaged(path, f"{STATE_FILE} was changed after it was written")
    loaded = {}
    for file, expected in content["files"].items():
        data = _bytes(path / file)
        if len(data) != expected["bytes"]:
            raise _damaged(path, f"{file} has {len(data)} bytes instead of {expected['bytes']}")
        if _digest(data) != expected["sha256"]:
            raise _damaged(path, f"{file} was changed after it was written")
        try:
            loaded[file] = safetensors.torch.load(data)
        except SafetensorError as error:
            raise _damaged(path, f"{file} cannot be read: {error}") from error
    tensors = loaded[TENSORS_FILE]
    strides = content["model"]["strides"]
    model = {key: with_strides(value, strides.get(key)) for key, value in loaded[MODEL_FILE].items()}
    model.update({key: unpack(value, tensors) for key, value in content["model"]["extra"].items()})
    return Checkpoint(path, model, unpack(content["state"], tensors))


def find_checkpoint(path: Path | str, which: str = "latest") -> Checkpoint:
    """The checkpoint at ``path``: itself one, or a run folder (or its ``checkpoints``) whose latest whole one is taken.

    ``which="best"``: the one that keep-best chose, as the latest knows it. Raises CheckpointError when there is none.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"there is no {path}", hint="give a run folder or a checkpoint inside one")
    if (path / STATE_FILE).exists() or (_NAME.match(path.name) and path.parent.name == "checkpoints"):
        return read_checkpoint(path)
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    names = names_in(folder)
    reasons = []
    for name in reversed(names):
        try:
            found = read_checkpoint(folder / name)
        except CheckpointError as error:
            reasons.append(error.message)
            continue
        best = (found.state.get("best") or {}).get("checkpoint")
        if which == "best" and best is not None and best != name:
            return read_checkpoint(folder / best)
        return found
    if reasons:
        raise CheckpointError(
            f"no checkpoint in {path} is whole; the latest: {reasons[0]}", hint="start the run again from its config"
        )
    raise CheckpointError(f"{path} holds no checkpoint", hint="give a run folder or a checkpoint inside one")


def names_in(folder: Path) -> list[str]:
    """Names of the checkpoints in ``folder``, oldest first; whether they are whole is another matter."""
    if not folder.is_dir():
        return []
    found = (_NAME.match(entry.name) for entry in folder.iterdir() if entry.is_dir())
    keys = sorted((int(m[1]), int(m[2] or 0), m[0]) for m in found if m is not None)
    return [name for _, _, name in keys]


def free_name(folder: Path, batches: int) -> str:
    """``00000120``, or ``00000120-2`` where that is taken, and so on."""
    name, number = f"{batches:08d}", 1
    while (folder / name).exists():
        number += 1
        name = f"{batches:08d}-{number}"
    return name


def prune(folder: Path, keep: int, protected: Iterable[str | None] = ()) -> None:
    """Remove all but the latest ``keep`` checkpoints and the ``protected`` names."""
    kept = set(protected)
    for name in names_in(folder)[:-keep]:
        if name not in kept:
            with machine_errors(folder / name):
                remove_directory(folder / name)


def _dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise _damaged(path.parent, f"{path.name} is missing") from None
    except OSError as error:
        raise _damaged(path.parent, f"{path.name} cannot be read: {error.strerror}") from error


def _json(path: Path) -> Any:
    try:
        return json.loads(_bytes(path))
    except ValueError as error:
        raise _damaged(path.parent, f"{path.name} is cut short or no JSON ({error})") from error


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"checkpoint {path} is damaged: {reason}", hint="use an earlier checkpoint of the run")
