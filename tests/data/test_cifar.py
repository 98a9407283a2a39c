from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from convoy.data.cifar import read_cifar
from convoy.data.source import Source
from convoy.errors import DataError


def images(source: Source) -> np.ndarray:
    return source.take(np.arange(len(source.labels)))


def test_python_batches_in_order(cifar10: Path, make: SimpleNamespace) -> None:
    parts = read_cifar("cifar10", str(cifar10))
    expected = [make.random_cifar(4, 10, seed=i) for i in range(5)]
    assert (images(parts.train) == np.concatenate([rows for rows, _ in expected]).reshape(-1, 3, 32, 32)).all()
    assert parts.train.labels.tolist() == [label for _, labels in expected for label in labels]
    rows, labels = make.random_cifar(10, 10, seed=5)
    assert (images(parts.validation) == rows.reshape(-1, 3, 32, 32)).all()
    assert parts.validation.labels.tolist() == labels
    assert parts.classes == tuple(f"name{i}" for i in range(10))
    assert parts.notes == ("20 training and 10 test images were found instead of 50,000 and 10,000",)


def test_the_folder_itself_and_names_that_are_missing(cifar10: Path) -> None:
    folder = cifar10 / "cifar-10-batches-py"
    (folder / "batches.meta").unlink()
    assert read_cifar("cifar10", str(folder)).classes == tuple("0123456789")


def test_cifar10_binary(tmp_path: Path, make: SimpleNamespace) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    train = []
    for number, name in enumerate([*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]):
        rows, labels = make.random_cifar(6, 10, seed=number)
        (folder / name).write_bytes(
            b"".join(bytes([one]) + row.tobytes() for one, row in zip(labels, rows, strict=True))
        )
        train.append((rows, labels))
    (folder / "batches.meta.txt").write_text("\n".join(f"name{i}" for i in range(10)) + "\n\n")
    parts = read_cifar("cifar10", str(tmp_path))
    assert (images(parts.train).reshape(30, -1) == np.concatenate([rows for rows, _ in train[:5]])).all()
    assert parts.train.labels.tolist() == [one for _, labels in train[:5] for one in labels]
    assert (images(parts.validation).reshape(6, -1) == train[5][0]).all()
    assert parts.classes[9] == "name9"


@pytest.fixture
def cifar100(tmp_path: Path, make: SimpleNamespace) -> Path:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for number, name in enumerate(["train", "test"]):
        rows, labels = make.random_cifar(100, 100, seed=number)
        coarse = [one // 5 for one in labels]
        data = make.python2_pickle({"data": rows, "coarse_labels": coarse, "fine_labels": labels})
        (folder / name).write_bytes(data)
    names = {"fine_label_names": [f"fine{i}" for i in range(100)], "coarse_label_names": [f"c{i}" for i in range(20)]}
    (folder / "meta").write_bytes(make.python2_pickle(names))
    return tmp_path


def test_cifar100_takes_the_fine_classes(cifar100: Path, make: SimpleNamespace) -> None:
    parts = read_cifar("cifar100", str(cifar100))
    rows, labels = make.random_cifar(100, 100, seed=0)
    assert (images(parts.train).reshape(100, -1) == rows).all()
    assert parts.train.labels.tolist() == labels
    assert len(parts.classes) == 100
    assert parts.classes[42] == "fine42"


def test_cifar100_binary(tmp_path: Path, make: SimpleNamespace) -> None:
    for number, name in enumerate(["train.bin", "test.bin"]):
        rows, labels = make.random_cifar(50, 100, seed=number)
        pairs = zip(labels, rows, strict=True)
        (tmp_path / name).write_bytes(b"".join(bytes([one // 5, one]) + row.tobytes() for one, row in pairs))
    parts = read_cifar("cifar100", str(tmp_path))
    assert parts.train.labels.tolist() == make.random_cifar(50, 100, seed=0)[1]
    assert (images(parts.train).reshape(50, -1) == make.random_cifar(50, 100, seed=0)[0]).all()


def test_no_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no CIFAR-100 files in .*cifar-100-binary") as caught:
        read_cifar("cifar100", str(tmp_path))
    assert "cifar-100-python/test" in str(caught.value.hint)


def test_missing_batches_are_named(cifar10: Path) -> None:
    (cifar10 / "cifar-10-batches-py" / "data_batch_3").unlink()
    (cifar10 / "cifar-10-batches-py" / "test_batch").unlink()
    with pytest.raises(DataError, match="lacks data_batch_3, test_batch"):
        read_cifar("cifar10", str(cifar10))


def broken(folder: Path, data: bytes) -> DataError:
    (folder / "cifar-10-batches-py" / "data_batch_2").write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_cifar("cifar10", str(folder))
    assert "data_batch_2" in caught.value.message
    assert caught.value.hint
    return caught.value


def test_a_truncated_batch(cifar10: Path) -> None:
    whole = (cifar10 / "cifar-10-batches-py" / "data_batch_2").read_bytes()
    for cut in (0, 1, 60, 5000, len(whole) - 1):
        assert "is not a complete CIFAR batch" in broken(cifar10, whole[:cut]).message


def test_batches_of_the_wrong_content(cifar10: Path, make: SimpleNamespace) -> None:
    rows, labels = make.random_cifar(4, 10)
    write = make.python2_pickle
    assert "no entry 'labels'" in broken(cifar10, write({"data": rows, "fine_labels": labels})).message
    assert "no entry 'data'" in broken(cifar10, write({"labels": labels})).message
    assert "4 images but 3 labels" in broken(cifar10, write({"data": rows, "labels": labels[:3]})).message
    assert "not rows of 3072 bytes" in broken(cifar10, write({"data": rows[:, :-1], "labels": labels})).message
    assert "not rows of 3072 bytes" in broken(cifar10, write({"data": [1, 2], "labels": labels})).message
    assert "not a list of whole numbers" in broken(cifar10, write({"data": rows, "labels": ["a"] * 4})).message
    assert "has no images" in broken(cifar10, write({"data": rows[:0], "labels": []})).message
    assert "not a complete CIFAR batch" in broken(cifar10, b"PK\x03\x04 a zip").message


def test_a_label_beyond_the_classes(cifar10: Path, make: SimpleNamespace) -> None:
    rows, _ = make.random_cifar(4, 10)
    data = make.python2_pickle({"data": rows, "labels": [0, 1, 2, 10]})
    (cifar10 / "cifar-10-batches-py" / "data_batch_1").write_bytes(data)
    with pytest.raises(DataError, match="label 10, but there are only 10 classes"):
        read_cifar("cifar10", str(cifar10))


@pytest.mark.parametrize("size", [0, 3073 * 4 - 1, 3073 * 4 + 1])
def test_a_truncated_binary_batch(tmp_path: Path, size: int) -> None:
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        (tmp_path / name).write_bytes(bytes(size))
    with pytest.raises(DataError, match=rf"data_batch_1.bin' has {size} bytes, .* 3073-byte records"):
        read_cifar("cifar10", str(tmp_path))


def test_an_inexact_copy_is_noted(cifar10: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    test = images(read_cifar("cifar10", str(cifar10)).validation)
    known = {hashlib.sha256(test.tobytes()).hexdigest(): "some images are not exact"}
    monkeypatch.setattr("convoy.data.cifar._INEXACT", known)
    assert "some images are not exact" in read_cifar("cifar10", str(cifar10)).notes
