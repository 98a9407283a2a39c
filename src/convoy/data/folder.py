"""Folders of images, one sub-folder per class, decoded when a batch needs them and kept while memory allows.

Two layouts: DIR/train/<class>/… beside DIR/validation, val, valid or test; or DIR/<class>/…, from which a fifth of
every class is set aside for validation, chosen by the files' names, so that more files do not move the others.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from convoy.data.places import root, unreadable
from convoy.data.source import Parts, check_labels
from convoy.errors import DataError

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_VALIDATION = ("validation", "val", "valid", "test")
_HELD_OUT = 5  # one in so many
_CACHE_BYTES = 1 << 30
_LARGEST_UNASKED, _USUAL_SIZE = 256, 224


class FolderSource:
    """Image files, resized to cover ``shape`` (C, H, W) and cropped at the centre; C is 1 (grey) or 3 (RGB).

    The first files, as many as fit into ``cache_bytes``, stay in memory once decoded. A file that cannot be decoded
    raises DataError with its path.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: NDArray[np.int64],
        shape: tuple[int, int, int],
        cache_bytes: int = _CACHE_BYTES,
    ) -> None:
        self.paths = tuple(paths)
        self._labels, self._shape, self._cache_bytes = labels, shape, cache_bytes
        kept = min(len(self.paths), cache_bytes // int(np.prod(shape)))
        self._cache = np.empty((kept, *shape), np.uint8)  # the system gives the memory when it is written to
        self._cached = np.zeros(kept, bool)
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """It travels to another process as paths; files are opened there."""
        return FolderSource, (self.paths, self._labels, self._shape, self._cache_bytes)

    @property
    def labels(self) -> NDArray[np.int64]:
        return self._labels

    @property
    def shape(self) -> tuple[int, int, int]:
        return self._shape

    def take(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        out = np.empty((len(indices), *self._shape), np.uint8)
        for row, index in enumerate(indices.tolist()):
            if index < len(self._cache) and self._cached[index]:
                out[row] = self._cache[index]
                continue
            out[row] = decode(self.paths[index], self._shape)
            if index < len(self._cache):
                with self._lock:
                    self._cache[index] = out[row]
                    self._cached[index] = True
        return out

    def select(self, indices: NDArray[np.int64]) -> FolderSource:
        chosen = [self.paths[i] for i in indices.tolist()]
        return FolderSource(chosen, self._labels[indices], self._shape, self._cache_bytes)


def decode(path: Path, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """One image file as uint8 (C, H, W): turned upright, bilinear to cover the size, cropped at the centre."""
    channels, height, width = shape
    try:
        with Image.open(path) as opened:
            upright = ImageOps.exif_transpose(opened)
            if upright.mode.startswith("I"):  # 16 bits: the upper eight
                upright = Image.fromarray((np.asarray(upright).astype(np.uint32) >> 8).astype(np.uint8))
            elif upright.mode in ("P", "PA"):
                upright = upright.convert("RGBA")
            fitted = ImageOps.fit(
                upright.convert("L" if channels == 1 else "RGB"), (width, height), Image.Resampling.BILINEAR
            )
    except Exception as error:  # Pillow's decoders raise nearly every kind for a damaged file
        raise _undecodable(path, error) from error
    values = np.asarray(fitted)
    return values[None] if channels == 1 else values.transpose(2, 0, 1)


def _undecodable(path: Path, error: Exception) -> DataError:
    if isinstance(error, PermissionError | FileNotFoundError):
        return unreadable(path, error)
    return DataError(f"cannot decode the image '{path}': {error}", hint="repair, replace or remove the file")


def read_folder(given: str | None, image_size: int | None = None) -> Parts:
    """Both parts of an image folder; classes are its sub-folders in alphabetical order, hidden files are ignored.

    Without ``image_size`` the size is that of the first image if neither side is above 256, else 224 x 224. The set
    is grey (one channel) if the first image of every class is, else RGB.
    """
    if not given:
        raise DataError("no folder was given for 'folder'", hint="say which: folder:DIR, with DIR/train/<class>/*.png")
    base = root("folder", given)
    notes: list[str] = []
    if (base / "train").is_dir():
        files = _by_class(base / "train")
        held_out = next((base / name for name in _VALIDATION if (base / name).is_dir()), None)
    else:
        files, held_out = _by_class(base), None
    classes = tuple(files)
    if held_out is not None:
        validation = _by_class(held_out, among=classes)
    else:
        files, validation = _split(files, base)
        count = sum(map(len, validation.values()))
        notes.append(f"a fifth of every class was set aside for validation ({count} images)")
    shape, note = _shape([paths[0] for paths in files.values()], image_size)
    notes.extend([note] if note else [])
    parts = Parts("folder", _source(files, classes, shape), _source(validation, classes, shape), classes, tuple(notes))
    check_labels(parts, f"'{base}'")
    if not len(parts.validation.labels):
        raise DataError(f"no validation images are left in '{base}'", hint="put at least two images into every class")
    return parts


def _by_class(folder: Path, among: tuple[str, ...] | None = None) -> dict[str, list[Path]]:
    """Image files by class. With ``among`` (validation) classes may be absent, but none may be new."""
    try:
        names = sorted(place.name for place in folder.iterdir() if place.is_dir() and not place.name.startswith("."))
        files = {name: _images(folder / name) for name in names}
    except OSError as error:
        raise unreadable(folder, error) from error
    if not names:
        raise DataError(
            f"'{folder}' has no sub-folders, which would be the classes", hint="arrange it as DIR/train/<class>/*.png"
        )
    if among is not None and (new := [name for name in names if name not in among]):
        raise DataError(
            f"'{folder}' has the class '{new[0]}', which the training part lacks",
            hint=f"training has {', '.join(among[:8])}{' …' if len(among) > 8 else ''}; rename or move the folder",
        )
    if empty := [name for name in names if not files[name]]:
        raise DataError(
            f"the class folder '{folder / empty[0]}' has no images",
            hint=f"add images ({', '.join(e[1:] for e in ENDINGS[:4])}, …) or remove the folder",
        )
    return files


def _images(folder: Path) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _split(files: dict[str, list[Path]], base: Path) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    train: dict[str, list[Path]] = {}
    validation: dict[str, list[Path]] = {}
    for name, paths in files.items():
        ranked = sorted(paths, key=lambda p: hashlib.sha256(p.relative_to(base).as_posix().encode()).digest())
        count = max(1, len(ranked) // _HELD_OUT) if len(ranked) > 1 else 0
        validation[name], train[name] = sorted(ranked[:count]), sorted(ranked[count:])
    return train, validation


def _shape(firsts: list[Path], image_size: int | None) -> tuple[tuple[int, int, int], str | None]:
    """(C, H, W) from the first image of every class, and what to tell where the size was chosen for the user."""
    grey, sizes = True, []
    for path in firsts:
        try:
            with Image.open(path) as image:
                sizes.append((image.height, image.width))
                grey = grey and image.mode in ("1", "L", "I", "I;16", "I;16B", "I;16L")
        except Exception as error:  # as in decode
            raise _undecodable(path, error) from error
    channels = 1 if grey else 3
    if image_size is not None:
        return (channels, image_size, image_size), None
    height, width = sizes[0]
    if max(height, width) > _LARGEST_UNASKED:
        height = width = _USUAL_SIZE
    same = all(size == (height, width) for size in sizes)
    note = None if same else f"images are resized and cropped to {height}x{width} pixels"
    return (channels, height, width), note


def _source(files: dict[str, list[Path]], classes: tuple[str, ...], shape: tuple[int, int, int]) -> FolderSource:
    paths = [path for name in files for path in files[name]]
    labels = np.array([classes.index(name) for name in files for _ in files[name]], np.int64)
    return FolderSource(paths, labels, shape)
