"""Small files in the formats of the real sets, made by hand."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image


def idx_bytes(values: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def _short(text: str) -> bytes:
    return b"U" + bytes([len(text)]) + text.encode()


def python2_pickle(entries: dict[str, Any]) -> bytes:
    """What cPickle of Python 2 (protocol 2) wrote: SHORT_BINSTRING keys, lists of small numbers or strings, arrays."""
    out = [b"\x80\x02}("]
    for name, value in entries.items():
        out.append(_short(name))
        if isinstance(value, np.ndarray):
            rows, columns = value.shape
            out += [
                b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + _short("b") + b"\x87R",
                b"(K\x01" + struct.pack("<cici", b"J", rows, b"J", columns) + b"\x86",
                b"cnumpy\ndtype\n" + _short("u1") + b"K\x00K\x01\x87R",
                b"(K\x03" + _short("|") + b"NNN" + struct.pack("<ci", b"J", -1) * 2 + b"K\x00tb",
                b"\x89T" + struct.pack("<i", value.nbytes) + value.tobytes() + b"tb",
            ]
        elif isinstance(value, list):
            items = [_short(one) if isinstance(one, str) else b"K" + bytes([one]) for one in value]
            out.append(b"](" + b"".join(items) + b"e")
        else:
            out.append(_short(value))
    return b"".join([*out, b"u."])


def random_cifar(count: int, classes: int, seed: int = 0) -> tuple[NDArray[np.uint8], list[int]]:
    """Rows of 3072 random bytes and labels that go round the classes."""
    rows = np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)
    return rows, [(seed + i) % classes for i in range(count)]


@pytest.fixture
def make() -> SimpleNamespace:
    return SimpleNamespace(idx_bytes=idx_bytes, python2_pickle=python2_pickle, random_cifar=random_cifar)


@pytest.fixture
def mnist(tmp_path: Path) -> Callable[..., Path]:
    """``mnist(packed=…, below=…)`` writes 30 + 10 images of 6x5 pixels and returns the folder to be given."""

    def write(packed: bool = False, below: str = ".") -> Path:
        rng = np.random.default_rng(0)
        folder = tmp_path / below
        folder.mkdir(parents=True, exist_ok=True)
        for name, count in (("train", 30), ("t10k", 10)):
            images = rng.integers(0, 256, (count, 6, 5), dtype=np.uint8)
            for kind, values in (("images-idx3", images), ("labels-idx1", np.arange(count, dtype=np.uint8) % 10)):
                data = idx_bytes(values)
                path = folder / (f"{name}-{kind}-ubyte" + ".gz" * packed)
                path.write_bytes(gzip.compress(data) if packed else data)
        return tmp_path

    return write


@pytest.fixture
def cifar10(tmp_path: Path) -> Path:
    """Five training batches of 4 images and a test batch of 10, as python batches, in a folder that contains them."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        rows, labels = random_cifar(10 if name == "test_batch" else 4, 10, seed=number)
        (folder / name).write_bytes(python2_pickle({"batch_label": name, "labels": labels, "data": rows}))
    names = [f"name{i}" for i in range(10)]
    (folder / "batches.meta").write_bytes(python2_pickle({"label_names": names}))
    return tmp_path


@pytest.fixture
def picture() -> Callable[..., Path]:
    """``picture(path, colour, size, mode)`` saves an image of one colour."""

    def save(path: Path, colour: Any = (200, 100, 0), size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, colour).save(path)
        return path

    return save
