"""MNIST and sets in its format: idx files, raw or gzipped.

The format (Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits"): two zero bytes, a byte for
the type (8 is uint8), a byte for the number of dimensions, each dimension as a big-endian 32-bit number, the values.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray

from convoy.data.places import find, root, unreadable
from convoy.data.source import ArraySource, Parts, check_labels, numbered
from convoy.errors import DataError

_UINT8 = 8
_MOST_BYTES = 1 << 34
_AGAIN = "the file is damaged; fetch or unpack it again"
_FOLDERS = ("MNIST/raw", "raw", "MNIST", "mnist")


def read_mnist(given: str | None) -> Parts:
    """Training and test part in DIR, DIR/MNIST/raw or DIR/raw: 1 channel, as many classes as there are labels."""
    base = root("mnist", given)
    folder = find(
        base,
        _FOLDERS,
        lambda place: _file(place, "train-images", "idx3") is not None,
        "MNIST files",
        "four files are needed, raw or .gz: train-images-idx3-ubyte, train-labels-idx1-ubyte and the same with t10k",
    )
    parts = [_read_part(folder, name) for name in ("train", "t10k")]
    count = max(int(parts[0].labels.max(initial=0)) + 1, 1)
    result = Parts("mnist", parts[0], parts[1], numbered(count))
    check_labels(result, f"'{folder}'")
    return result


def _file(folder: Path, stem: str, kind: str) -> Path | None:
    for name in (f"{stem}-{kind}-ubyte", f"{stem}.{kind}-ubyte"):
        for suffix in ("", ".gz"):
            if (folder / (name + suffix)).is_file():
                return folder / (name + suffix)
    return None


def _read_part(folder: Path, name: str) -> ArraySource:
    paths = [_file(folder, f"{name}-{what}", kind) for what, kind in (("images", "idx3"), ("labels", "idx1"))]
    for path, what in zip(paths, ("images-idx3", "labels-idx1"), strict=True):
        if path is None:
            raise DataError(f"'{folder}' lacks {name}-{what}-ubyte", hint="put the file there, raw or as .gz")
    image_path, label_path = cast("list[Path]", paths)
    images, labels = read_idx(image_path, dimensions=3), read_idx(label_path, dimensions=1)
    if len(images) != len(labels):
        raise DataError(
            f"'{image_path}' has {len(images)} images but '{label_path.name}' has {len(labels)} labels",
            hint="the two files belong to different sets or parts; fetch both again",
        )
    if images.size == 0:
        raise DataError(f"'{image_path}' has no images", hint=_AGAIN)
    return ArraySource(images[:, None], labels)


def read_idx(path: Path, *, dimensions: int) -> NDArray[np.uint8]:
    """The values of one uint8 idx file with that many dimensions; a name ending in .gz is unpacked."""
    packed = path.suffix == ".gz"
    try:
        with cast("IO[bytes]", gzip.open(path, "rb")) if packed else path.open("rb") as stream:
            return _parse(stream, path, dimensions)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"'{path}' is not a complete gzip file: {error}", hint=_AGAIN) from error
    except OSError as error:
        raise unreadable(path, error) from error


def _parse(stream: IO[bytes], path: Path, dimensions: int) -> NDArray[np.uint8]:
    length = 4 + 4 * dimensions
    head = stream.read(length)
    if len(head) < length:
        raise DataError(f"'{path}' ends after {len(head)} bytes, within its header", hint=_AGAIN)
    if head[:4] != bytes((0, 0, _UINT8, dimensions)):
        raise DataError(
            f"'{path}' begins with the bytes {head[:4].hex(' ')} instead of 00 00 08 {dimensions:02x}, so it is no idx "
            f"file of bytes with {dimensions} dimension{'s' * (dimensions > 1)}",
            hint="images and labels may be swapped, or a .gz file has lost its ending",
        )
    shape = struct.unpack(f">{dimensions}I", head[4:])
    expected = math.prod(shape)
    # One byte more than announced is read, so that a wrong header is noticed but never fills the memory.
    values = stream.read(min(expected, _MOST_BYTES) + 1)
    if len(values) != expected:
        found = f"only {len(values)}" if len(values) < expected else "more"
        raise DataError(
            f"'{path}' announces {expected} values ({'x'.join(map(str, shape))}) but holds {found}", hint=_AGAIN
        )
    return np.frombuffer(values, np.uint8).reshape(shape)
