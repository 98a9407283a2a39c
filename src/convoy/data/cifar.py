"""CIFAR-10 and CIFAR-100, as python batches or in the binary version.

A. Krizhevsky: "Learning multiple layers of features from tiny images", technical report, University of Toronto, 2009.
Every image is 3072 bytes: 32 x 32 pixels of red, then green, then blue.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convoy.data.places import find, root, unreadable
from convoy.data.source import ArraySource, Parts, check_labels, numbered
from convoy.data.unpickle import read_pickle
from convoy.errors import DataError

_PIXELS = 3 * 32 * 32
_AGAIN = "the file is damaged or incomplete; unpack the archive again"

# Copies in circulation that are not exact, by the SHA-256 of their test pixels.
_INEXACT = {
    "1fe46ff47f5fb6c1b24f0b5448654cac0e0d3e1e0c16f9cbac842307814b553a": (
        "75 training and 20 test images of this copy of CIFAR-10 come from JPEG files (mean error about 6 of 255), "
        "all others are exact; at most 0.2 points of test accuracy can depend on it"
    ),
}


@dataclass(frozen=True, slots=True)
class _Layout:
    """The files of one version; ``label_bytes`` of a binary record, the last of which is the class."""

    folder: str
    train: tuple[str, ...]
    test: str
    names: str
    label_key: str
    name_key: str
    label_bytes: int = 0


_LAYOUTS = {
    "cifar10": (
        _Layout(
            "cifar-10-batches-py",
            tuple(f"data_batch_{i}" for i in range(1, 6)),
            "test_batch",
            "batches.meta",
            "labels",
            "label_names",
        ),
        _Layout(
            "cifar-10-batches-bin",
            tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
            "test_batch.bin",
            "batches.meta.txt",
            "",
            "",
            label_bytes=1,
        ),
    ),
    "cifar100": (
        _Layout("cifar-100-python", ("train",), "test", "meta", "fine_labels", "fine_label_names"),
        _Layout("cifar-100-binary", ("train.bin",), "test.bin", "fine_label_names.txt", "", "", label_bytes=2),
    ),
}
_CLASSES = {"cifar10": 10, "cifar100": 100}


def read_cifar(kind: str, given: str | None) -> Parts:
    """Both parts of ``cifar10`` or ``cifar100`` (its 100 fine classes); python batches first, else the binary ones."""
    layouts = _LAYOUTS[kind]
    base = root(kind, given)
    # A folder with one of the files is the right one: a missing file is then named instead of "nothing found".
    folder = find(
        base,
        tuple(layout.folder for layout in layouts),
        lambda place: any((place / name).is_file() for one in layouts for name in (*one.train, one.test)),
        f"{'CIFAR-10' if kind == 'cifar10' else 'CIFAR-100'} files",
        f"unpack the archive there, so that {layouts[0].folder}/{layouts[0].test} exists",
    )
    layout = next(one for one in layouts if any((folder / name).is_file() for name in (*one.train, one.test)))
    missing = [name for name in (*layout.train, layout.test) if not (folder / name).is_file()]
    if missing:
        raise DataError(f"'{folder}' lacks {', '.join(missing)}", hint="unpack the archive again")
    read = _read_records if layout.label_bytes else _read_batch
    train = [read(folder / name, layout) for name in layout.train]
    parts = Parts(
        kind,
        ArraySource(np.concatenate([images for images, _ in train]), np.concatenate([labels for _, labels in train])),
        ArraySource(*read(folder / layout.test, layout)),
        numbered(_CLASSES[kind], _names(folder / layout.names, layout)),
    )
    check_labels(parts, f"'{folder}'")
    return Parts(parts.name, parts.train, parts.validation, parts.classes, _notes(parts))


def _read_batch(path: Path, layout: _Layout) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    batch = read_pickle(path)
    images, labels = batch.get("data"), batch.get(layout.label_key)
    if images is None or labels is None:
        lacking = "data" if images is None else layout.label_key
        raise DataError(
            f"'{path}' has no entry '{lacking}'",
            hint="the file belongs to another set: cifar10 has 'labels', cifar100 'fine_labels'",
        )
    if not isinstance(images, np.ndarray) or images.ndim != 2 or images.shape[1] != _PIXELS:
        raise DataError(f"the images in '{path}' are not rows of {_PIXELS} bytes", hint=_AGAIN)
    if not isinstance(labels, list) or not all(isinstance(one, int) and 0 <= one < 256 for one in labels):
        raise DataError(f"the labels in '{path}' are not a list of whole numbers below 256", hint=_AGAIN)
    if len(labels) != len(images):
        raise DataError(f"'{path}' has {len(images)} images but {len(labels)} labels", hint=_AGAIN)
    if len(images) == 0:
        raise DataError(f"'{path}' has no images", hint=_AGAIN)
    return images.reshape(-1, 3, 32, 32), np.array(labels, np.int64)


def _read_records(path: Path, layout: _Layout) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        values = np.fromfile(path, np.uint8)
    except OSError as error:
        raise unreadable(path, error) from error
    length = layout.label_bytes + _PIXELS
    if len(values) == 0 or len(values) % length:
        raise DataError(
            f"'{path}' has {len(values)} bytes, which is not a whole number of {length}-byte records", hint=_AGAIN
        )
    records = values.reshape(-1, length)
    images = np.ascontiguousarray(records[:, layout.label_bytes :]).reshape(-1, 3, 32, 32)
    return images, records[:, layout.label_bytes - 1].astype(np.int64)


def _names(path: Path, layout: _Layout) -> tuple[str, ...]:
    """Class names; none where the file with them is missing, as it is not needed for training."""
    if not path.is_file():
        return ()
    if layout.label_bytes:
        try:
            return tuple(path.read_text("utf-8", errors="replace").split())
        except OSError as error:
            raise unreadable(path, error) from error
    names: Any = read_pickle(path).get(layout.name_key, [])
    return tuple(name.decode("latin1") if isinstance(name, bytes) else str(name) for name in names)


def _notes(parts: Parts) -> tuple[str, ...]:
    train, test = parts.train, parts.validation
    notes = []
    counts = len(train.labels), len(test.labels)
    if counts != (50000, 10000):
        notes.append(f"{counts[0]:,} training and {counts[1]:,} test images were found instead of 50,000 and 10,000")
    if parts.name == "cifar10" and isinstance(test, ArraySource):
        inexact = _INEXACT.get(hashlib.sha256(np.ascontiguousarray(test.images).data).hexdigest())
        notes.extend([inexact] if inexact else [])
    return tuple(notes)
