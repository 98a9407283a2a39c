from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from convoy.data.source import ArraySource, Parts, channel_moments, check_labels, numbered, resize
from convoy.errors import DataError

RNG = np.random.default_rng(3)
IMAGES = RNG.integers(0, 256, (20, 3, 9, 7), dtype=np.uint8)


@pytest.mark.parametrize("size", [(28, 28), (18, 14), (5, 4), (9, 7), (1, 1), (9, 3)])
def test_resize_is_bilinear_and_antialiased(size: tuple[int, int]) -> None:
    expected = interpolate(torch.from_numpy(IMAGES).double(), size=size, mode="bilinear", antialias=True).numpy()
    assert np.abs(resize(IMAGES, *size) - expected).max() <= 0.5 + 0.1  # rounding, and weights of 12 bits


def test_resize_keeps_constant_images_and_the_same_size() -> None:
    assert (resize(np.full((1, 1, 5, 5), 255, np.uint8), 17, 3) == 255).all()
    assert (resize(IMAGES, 9, 7) == IMAGES).all()


def test_resized_does_not_depend_on_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    source = ArraySource(IMAGES, np.zeros(20))
    whole = source.resized(12).images
    monkeypatch.setattr("convoy.data.source._CHUNK_BYTES", 3 * 12 * 12 * 3)
    assert (source.resized(12).images == whole).all()
    assert whole.shape == (20, 3, 12, 12)


def test_resized_refuses_to_fill_the_memory() -> None:
    many = ArraySource(np.broadcast_to(np.uint8(0), (50_000, 3, 32, 32)), np.zeros(50_000))
    with pytest.raises(DataError, match=r"50,000 images of 224x224 pixels would take 7\.0 GiB"):
        many.resized(224)


def test_moments_are_those_of_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convoy.data.source._CHUNK_BYTES", 500)
    mean, deviation = channel_moments(ArraySource(IMAGES, np.zeros(20)))
    assert mean == pytest.approx(IMAGES.mean(axis=(0, 2, 3)))
    assert deviation == pytest.approx(IMAGES.std(axis=(0, 2, 3)))


def test_moments_of_some_images() -> None:
    mean, _ = channel_moments(ArraySource(IMAGES, np.zeros(20)), most=4)
    assert mean == pytest.approx(IMAGES[::5].mean(axis=(0, 2, 3)))


def test_a_constant_channel_is_not_divided_by_zero() -> None:
    assert channel_moments(ArraySource(np.full((3, 1, 2, 2), 7, np.uint8), np.zeros(3))) == ((7.0,), (1.0,))


def test_select_renumbers() -> None:
    source = ArraySource(IMAGES, np.arange(20)).select(np.array([4, 2]))
    assert source.labels.tolist() == [4, 2]
    assert (source.take(np.array([1])) == IMAGES[[2]]).all()


def test_array_source_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(DataError, match=r"float32 \[20, 3, 9, 7\]"):
        ArraySource(IMAGES.astype(np.float32), np.zeros(20))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"uint8 \[20, 9, 7\]"):
        ArraySource(IMAGES[:, 0], np.zeros(20))
    with pytest.raises(DataError, match="20 images but 19 labels"):
        ArraySource(IMAGES, np.zeros(19))


def test_labels_are_checked() -> None:
    def parts(train: list[int], validation: list[int]) -> Parts:
        sources = [ArraySource(IMAGES[: len(one)], np.array(one)) for one in (train, validation)]
        return Parts("set", sources[0], sources[1], numbered(3))

    check_labels(parts([0, 1, 2], [2]), "here")
    with pytest.raises(DataError, match="all 2 training images in here belong to one class"):
        check_labels(parts([1, 1], [1]), "here")
    with pytest.raises(DataError, match="validation part of here has label 3, but there are only 3 classes"):
        check_labels(parts([0, 1], [0, 3]), "here")


def test_numbered() -> None:
    assert numbered(2, ["cat", "dog"]) == ("cat", "dog")
    assert numbered(3, ["cat", "dog"]) == ("0", "1", "2")
