"""The real files, where there are any: CONVOY_DATA or ./data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from convoy.data import DataBundle, open_data

pytestmark = pytest.mark.data
FOLDER = Path(os.environ.get("CONVOY_DATA", "data"))


def opened(kind: str, file: str, **options: bool) -> DataBundle:
    if not any((FOLDER / place).exists() for place in (file, file + ".gz")):
        pytest.skip(f"no {kind} files in '{FOLDER}' (set CONVOY_DATA)")
    return open_data(f"{kind}:{FOLDER}", batch_size=100, **options)


def test_mnist() -> None:
    data = opened("mnist", "MNIST/raw/train-images-idx3-ubyte")
    assert (data.train.dataset_size, data.validation.dataset_size) == (60_000, 10_000)
    assert data.sample_shape == (1, 28, 28)
    assert len(data.classes) == 10
    assert data.train.source.labels[:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]
    assert data.validation.source.labels[:8].tolist() == [7, 2, 1, 0, 4, 1, 4, 9]
    assert data.mean[0] / 255 == pytest.approx(0.1307, abs=5e-5)
    assert data.deviation[0] / 255 == pytest.approx(0.3081, abs=5e-5)


def test_cifar10() -> None:
    data = opened("cifar10", "cifar-10-batches-py/test_batch", augment=False)
    assert (data.train.dataset_size, data.validation.dataset_size) == (50_000, 10_000)
    assert data.sample_shape == (3, 32, 32)
    assert data.classes[0] == "airplane"
    assert data.train.source.labels[:8].tolist() == [6, 9, 9, 4, 1, 1, 2, 7]
    assert data.validation.source.labels[:8].tolist() == [3, 8, 8, 0, 6, 6, 1, 6]
    assert [m / 255 for m in data.mean] == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)
    assert [d / 255 for d in data.deviation] == pytest.approx([0.2470, 0.2435, 0.2616], abs=1e-4)
    counts, sums = torch.zeros(10, dtype=torch.int64), torch.zeros(3, dtype=torch.float64)
    for x, y in data.train.iterate(0):
        counts += torch.bincount(y, minlength=10)
        sums += x.double().sum(dim=(0, 2, 3))
    assert counts.tolist() == [5000] * 10
    assert (sums / (50_000 * 1024)).abs().max() < 1e-4  # normalised: every channel has mean 0


def test_cifar100() -> None:
    data = opened("cifar100", "cifar-100-python/test")
    assert (data.train.dataset_size, data.validation.dataset_size) == (50_000, 10_000)
    assert len(data.classes) == 100
    assert data.classes[0] == "apple"
    assert data.train.source.labels[:4].tolist() == [19, 29, 0, 11]
