from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from convoy.data import open_data
from convoy.errors import DataError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the variable nor ./data of whoever runs the tests."""
    monkeypatch.delenv("CONVOY_DATA", raising=False)
    monkeypatch.chdir(tmp_path_factory.mktemp("empty"))


def test_a_bundle_is_ready_for_training() -> None:
    data = open_data("digits", batch_size=100, seed=5)
    assert (data.name, data.classes, data.notes) == ("digits", tuple("0123456789"), ())
    assert (data.train.dataset_size, data.validation.dataset_size) == (1437, 360)
    assert (data.train.shuffle, data.validation.shuffle) == (True, False)
    x = torch.cat([x for x, _ in data.train.iterate(0)])
    assert x.shape == (1437, *data.sample_shape)
    assert float(x.mean()) == pytest.approx(0, abs=1e-4)
    assert float(x.std()) == pytest.approx(1, abs=1e-3)


def test_the_validation_part_is_normalised_like_the_training_part() -> None:
    data = open_data("digits", batch_size=400, image_size=8)
    x, y = next(data.validation.iterate(0))
    pixels = data.validation.source.take(np.arange(360)).astype(np.float64)
    assert torch.allclose(x.double(), torch.from_numpy((pixels - data.mean[0]) / data.deviation[0]), atol=1e-5)
    assert y.tolist() == data.validation.source.labels.tolist()


def test_the_seed_decides_the_order() -> None:
    def labels(seed: int) -> list[int]:
        return torch.cat([y for _, y in open_data("digits", batch_size=100, seed=seed).train.iterate(0)]).tolist()

    assert labels(1) == labels(1)
    assert labels(1) != labels(2)


def test_augmentation_is_for_the_cifars_unless_asked_for(cifar10: Path) -> None:
    cifar = open_data(f"cifar10:{cifar10}", batch_size=4)
    assert cifar.train.augment is not None
    assert (cifar.train.augment.padding, cifar.train.augment.flip) == (4, True)
    assert cifar.validation.augment is None
    assert open_data(f"cifar10:{cifar10}", batch_size=4, augment=False).train.augment is None
    assert open_data("digits", batch_size=4).train.augment is None
    digits = open_data("digits", batch_size=4, augment=True).train.augment
    assert digits is not None
    assert not digits.flip  # a mirrored digit is another sign


def test_limit_keeps_some_of_each_part() -> None:
    whole, some = (open_data("digits", batch_size=50, limit=limit) for limit in (None, 300))
    assert (some.train.dataset_size, some.validation.dataset_size) == (300, 300)
    assert (some.mean, some.deviation) == (whole.mean, whole.deviation)
    assert len(np.unique(some.train.source.labels)) == 10
    assert (some.train.source.labels == open_data("digits", batch_size=9, limit=300).train.source.labels).all()
    other = open_data("digits", batch_size=50, limit=300, seed=1)
    assert not (some.train.source.labels == other.train.source.labels).all()
    assert open_data("digits", batch_size=50, limit=10**6).train.dataset_size == 1437


def test_image_size_and_memory_format(mnist: Callable[..., Path]) -> None:
    data = open_data(f"mnist:{mnist()}", batch_size=4, image_size=12, channels_last=True)
    assert data.sample_shape == (1, 12, 12)
    x, _ = next(iter(data.train))
    assert x.shape == (4, 1, 12, 12)
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_the_folder_comes_from_the_option_the_variable_or_data(
    mnist: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = mnist(packed=True, below="MNIST/raw")
    monkeypatch.setenv("CONVOY_DATA", str(folder))
    assert open_data("mnist", batch_size=4).train.dataset_size == 30
    with pytest.raises(DataError, match="the folder '/no/where' does not exist"):
        open_data("mnist:/no/where", batch_size=4)  # what is said goes before the variable
    monkeypatch.delenv("CONVOY_DATA")
    monkeypatch.chdir(folder)
    (folder / "MNIST").rename(folder / "put-aside")
    (folder / "data").mkdir()
    (folder / "put-aside").rename(folder / "data" / "MNIST")
    assert open_data("mnist", batch_size=4).train.dataset_size == 30
    assert open_data("mnist:", batch_size=4).train.dataset_size == 30


@pytest.mark.parametrize(
    ("spec", "said", "hint"),
    [
        ("cifra10", "no data set of the kind 'cifra10'", "did you mean 'cifar10'"),
        ("MNIST:x", "no data set of the kind 'MNIST'", "did you mean 'mnist'"),
        ("quantum", "no data set of the kind 'quantum'", "choose one of digits, mnist, cifar10, cifar100, folder"),
        ("", "no data set of the kind ''", "choose one of"),
        ("digits:somewhere", "'digits' is embedded and takes no folder, but 'somewhere' was given", "'digits' alone"),
        ("mnist:missing", "the folder 'missing' does not exist", "check the path after 'mnist:'"),
        ("cifar10:missing", "the folder 'missing' does not exist", "check the path after 'cifar10:'"),
        ("folder:missing", "the folder 'missing' does not exist", "check the path after 'folder:'"),
        ("cifar100", "no folder was given for cifar100 and './data' does not exist", "CONVOY_DATA"),
        ("folder", "no folder was given for 'folder'", "folder:DIR"),
    ],
)
def test_wrong_specs(spec: str, said: str, hint: str) -> None:
    with pytest.raises(DataError) as caught:
        open_data(spec, batch_size=4)
    assert said in caught.value.message
    assert hint in str(caught.value.hint)
    assert caught.value.exit_code == 2


def test_a_variable_that_points_nowhere_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVOY_DATA", "/no/where")
    with pytest.raises(DataError, match=r"'/no/where' \(CONVOY_DATA\) does not exist"):
        open_data("mnist", batch_size=4)


def test_a_file_instead_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file, not a folder"):
        open_data(f"cifar10:{tmp_path / 'file'}", batch_size=4)


@pytest.mark.parametrize("field", ["batch_size", "image_size", "limit"])
def test_counts_of_zero(field: str) -> None:
    with pytest.raises(DataError, match=f"{field} must be a whole number of at least 1, not 0"):
        open_data("digits", **{"batch_size": 4, field: 0})  # type: ignore[arg-type]
