from __future__ import annotations

import hashlib

import numpy as np
import pytest

from convoy.data import open_data
from convoy.data.digits import read_digits


def test_sizes_values_and_both_parts() -> None:
    parts = read_digits()
    train, test = (one.take(np.arange(len(one.labels))) for one in (parts.train, parts.validation))
    assert train.shape == (1437, 1, 8, 8)
    assert test.shape == (360, 1, 8, 8)
    assert (train.min(), train.max()) == (0, 255)
    assert np.bincount(parts.validation.labels, minlength=10).min() >= 25
    assert parts.classes == tuple("0123456789")


def test_the_parts_never_change() -> None:
    parts = read_digits()
    digest = hashlib.sha256()
    for source in (parts.train, parts.validation):
        digest.update(source.take(np.arange(len(source.labels))).tobytes())
        digest.update(source.labels.astype("<i8").tobytes())
    assert digest.hexdigest() == "75ce8a433c569e3fda273cff99e3d7c68095a06a1a815ce9e0933028a7204597"


def test_they_are_those_of_scikit_learn() -> None:
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    parts = read_digits()
    mine = np.concatenate([one.take(np.arange(len(one.labels)))[:, 0] for one in (parts.train, parts.validation)])
    labels = np.concatenate([parts.train.labels, parts.validation.labels])
    stretched = (digits.images.astype(int) * 255 + 8) // 16
    ours = sorted((image.tobytes(), label) for image, label in zip(mine, labels, strict=True))
    theirs = zip(stretched.astype(np.uint8), digits.target, strict=True)
    assert ours == sorted((image.tobytes(), label) for image, label in theirs)


def test_opened_at_28_unless_asked_otherwise() -> None:
    assert open_data("digits", batch_size=64).sample_shape == (1, 28, 28)
    assert open_data("digits", batch_size=64, image_size=8).sample_shape == (1, 8, 8)
