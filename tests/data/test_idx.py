from __future__ import annotations

import gzip
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from convoy.data.idx import read_idx, read_mnist
from convoy.errors import DataError

Write = Callable[..., Path]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("below", [".", "MNIST/raw", "raw"])
def test_reads_raw_and_packed_files_wherever_they_lie(mnist: Write, packed: bool, below: str) -> None:
    parts = read_mnist(str(mnist(packed, below)))
    rng = np.random.default_rng(0)
    assert (parts.train.take(np.arange(30))[:, 0] == rng.integers(0, 256, (30, 6, 5), dtype=np.uint8)).all()
    assert (parts.validation.take(np.arange(10))[:, 0] == rng.integers(0, 256, (10, 6, 5), dtype=np.uint8)).all()
    assert parts.train.labels.tolist() == [*range(10)] * 3
    assert parts.train.shape == (1, 6, 5)
    assert parts.classes == tuple("0123456789")


def test_names_with_a_dot(mnist: Write) -> None:
    folder = mnist()
    for path in list(folder.iterdir()):
        path.rename(folder / path.name.replace("-idx", ".idx"))
    assert len(read_mnist(str(folder)).train.labels) == 30


def test_a_missing_file_is_named(mnist: Write) -> None:
    folder = mnist()
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="lacks t10k-labels-idx1-ubyte"):
        read_mnist(str(folder))


def test_a_folder_without_the_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no MNIST files in") as caught:
        read_mnist(str(tmp_path))
    assert "train-images-idx3-ubyte" in str(caught.value.hint)


def test_counts_must_agree(mnist: Write, make: SimpleNamespace) -> None:
    folder = mnist()
    (folder / "train-labels-idx1-ubyte").write_bytes(make.idx_bytes(np.zeros(29, np.uint8)))
    with pytest.raises(DataError, match=r"has 30 images but 'train-labels-idx1-ubyte' has 29 labels"):
        read_mnist(str(folder))


def test_one_class_only(mnist: Write, make: SimpleNamespace) -> None:
    folder = mnist()
    (folder / "train-labels-idx1-ubyte").write_bytes(make.idx_bytes(np.full(30, 4, np.uint8)))
    with pytest.raises(DataError, match="belong to one class"):
        read_mnist(str(folder))


def test_a_test_label_beyond_the_classes(mnist: Write, make: SimpleNamespace) -> None:
    folder = mnist()
    (folder / "t10k-labels-idx1-ubyte").write_bytes(make.idx_bytes(np.full(10, 99, np.uint8)))
    with pytest.raises(DataError, match="label 99, but there are only 10 classes"):
        read_mnist(str(folder))


def test_no_images_at_all(mnist: Write, make: SimpleNamespace) -> None:
    folder = mnist()
    (folder / "t10k-images-idx3-ubyte").write_bytes(make.idx_bytes(np.zeros((0, 6, 5), np.uint8)))
    (folder / "t10k-labels-idx1-ubyte").write_bytes(make.idx_bytes(np.zeros(0, np.uint8)))
    with pytest.raises(DataError, match="has no images"):
        read_mnist(str(folder))


WHOLE = struct.pack(">BBBBI", 0, 0, 8, 1, 5) + b"abcde"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "ends after 0 bytes"),
        (WHOLE[:6], "ends after 6 bytes"),
        (WHOLE[:-1], r"announces 5 values \(5\) but holds only 4"),
        (WHOLE + b"f", r"announces 5 values \(5\) but holds more"),
        (struct.pack(">BBBBI", 0, 0, 8, 1, 2**32 - 1), "announces 4294967295 values .* holds only 0"),
        (b"\x00\x00\x0d\x01" + WHOLE[4:], "begins with the bytes 00 00 0d 01 instead of 00 00 08 01"),
        (b"\x00\x00\x08\x03" + bytes(12), "begins with the bytes 00 00 08 03 .* 1 dimension$"),
        (gzip.compress(WHOLE), "begins with the bytes 1f 8b"),
    ],
)
def test_damaged_files(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_idx(tmp_path / "file", dimensions=1)
    assert caught.value.hint
    assert re.search(said, caught.value.message)


@pytest.mark.parametrize("cut", [1, 9, 12, 20, -9, -4, -1])
def test_a_truncated_gz(tmp_path: Path, cut: int) -> None:
    (tmp_path / "file.gz").write_bytes(gzip.compress(WHOLE)[:cut])
    with pytest.raises(DataError, match=r"file\.gz' is not a complete gzip file"):
        read_idx(tmp_path / "file.gz", dimensions=1)


def test_a_gz_that_is_none_or_is_damaged_within(tmp_path: Path) -> None:
    (tmp_path / "file.gz").write_bytes(WHOLE)
    with pytest.raises(DataError, match="not a complete gzip file"):
        read_idx(tmp_path / "file.gz", dimensions=1)
    data = bytearray(gzip.compress(WHOLE))
    data[-6] ^= 1  # in the checksum
    (tmp_path / "file.gz").write_bytes(data)
    with pytest.raises(DataError, match="not a complete gzip file"):
        read_idx(tmp_path / "file.gz", dimensions=1)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read every file")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(WHOLE)
    (tmp_path / "file").chmod(0)
    with pytest.raises(DataError, match="Permission denied"):
        read_idx(tmp_path / "file", dimensions=1)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*: No such file"):
        read_idx(tmp_path / "file", dimensions=1)
