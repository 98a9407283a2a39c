"""Images as they lie in memory or on disk: uint8 [N, C, H, W], one label each. Loaders make batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from convoy.errors import DataError

_CHUNK_BYTES = 1 << 22
_MEMORY_BYTES = 2 << 30


class Source(Protocol):
    """What a loader reads from. ``take`` may be called from several threads."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """The class of every sample, [N]."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one sample."""
        ...

    def take(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The images at these places, a fresh array [n, C, H, W]."""
        ...

    def select(self, indices: NDArray[np.int64]) -> Source:
        """A source of these samples alone, renumbered from 0."""
        ...


class ArraySource:
    """Images held in memory: ``images`` uint8 [N, C, H, W], ``labels`` integers [N]."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.integer]) -> None:
        if images.ndim != 4 or images.dtype != np.uint8:
            raise DataError(
                f"images must be uint8 of shape [N, C, H, W], not {images.dtype} {list(images.shape)}",
                hint="scale to 0…255 and add the channel dimension; other data goes through as_loader",
            )
        if len(images) != len(labels):
            raise DataError(f"there are {len(images)} images but {len(labels)} labels", hint="each image needs one")
        self.images = images
        self._labels = labels.astype(np.int64)

    @property
    def labels(self) -> NDArray[np.int64]:
        return self._labels

    @property
    def shape(self) -> tuple[int, int, int]:
        _, channels, height, width = self.images.shape
        return channels, height, width

    def take(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self.images[indices]

    def select(self, indices: NDArray[np.int64]) -> ArraySource:
        return ArraySource(self.images[indices], self._labels[indices])

    def resized(self, size: int) -> ArraySource:
        """All images at ``size`` x ``size``; DataError where that would take more than 2 GiB."""
        count, channels, height, width = self.images.shape
        if (height, width) == (size, size):
            return self
        needed = count * channels * size * size
        if needed > _MEMORY_BYTES:
            raise DataError(
                f"{count:,} images of {size}x{size} pixels would take {needed / 2**30:.1f} GiB of memory",
                hint="choose a smaller image size, fewer images with limit, or an image folder, which is read lazily",
            )
        out = np.empty((count, channels, size, size), np.uint8)
        step = max(1, _CHUNK_BYTES // (channels * max(size, height) * max(size, width)))
        for start in range(0, count, step):
            out[start : start + step] = resize(self.images[start : start + step], size, size)
        return ArraySource(out, self._labels)


@dataclass(frozen=True, slots=True)
class Parts:
    """What a reader returns: both parts, the names of the classes, and what the user should know about them."""

    name: str
    train: Source
    validation: Source
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()


def check_labels(parts: Parts, where: str) -> None:
    """DataError unless there are two classes or more and every label names one of them."""
    if len(parts.classes) < 2 or len(np.unique(parts.train.labels)) < 2:
        raise DataError(
            f"all {len(parts.train.labels)} training images in {where} belong to one class",
            hint="a classifier needs at least two classes",
        )
    for part, source in (("training", parts.train), ("validation", parts.validation)):
        worst = int(source.labels.max(initial=0))
        if worst >= len(parts.classes):
            raise DataError(
                f"the {part} part of {where} has label {worst}, but there are only {len(parts.classes)} classes",
                hint="the label file is damaged or belongs to another set",
            )


def channel_moments(source: Source, most: int | None = None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, in pixel values 0…255.

    Sums are whole numbers, so the result does not depend on the machine. ``most`` takes that many images, evenly
    spaced, where decoding all would be slow. A channel without variance gets the deviation 1.
    """
    total = len(source.labels)
    count = total if most is None else min(total, most)
    chosen = np.arange(count, dtype=np.int64) * total // count
    channels, height, width = source.shape
    sums, squares = np.zeros(channels, np.int64), np.zeros(channels, np.int64)
    step = max(1, _CHUNK_BYTES // (channels * height * width))
    for start in range(0, count, step):
        images = source.take(chosen[start : start + step])
        for channel in range(channels):
            # A histogram of 256 bins carries both sums exactly.
            bins = np.bincount(images[:, channel].reshape(-1), minlength=256)
            values = np.arange(256)
            sums[channel] += int(bins @ values)
            squares[channel] += int(bins @ (values * values))
    pixels = count * height * width
    mean = sums / pixels
    deviation = np.sqrt(np.maximum(squares / pixels - mean * mean, 0.0))
    deviation[deviation < 1e-3] = 1.0
    return tuple(float(v) for v in mean), tuple(float(v) for v in deviation)


def resize(images: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Bilinear, [n, C, H, W] to [n, C, height, width]; smaller sizes are antialiased (the triangle is widened).

    Weights are multiples of 2**-12, so every product and sum is a whole number below 2**53 and exact in float64:
    the same bytes on every machine, whatever its BLAS.
    """
    rows, columns = _weights(images.shape[2], height), _weights(images.shape[3], width)
    exact = rows @ (images.astype(np.float64) @ columns.T)
    return np.floor(exact / 2**24 + 0.5).astype(np.uint8)


def _weights(given: int, wanted: int) -> NDArray[np.float64]:
    """[wanted, given], whole numbers; every row sums to 4096. Pixel centres at ½ (no aligned corners)."""
    scale = given / wanted
    reach = max(scale, 1.0)
    centre = (np.arange(wanted) + 0.5) * scale - 0.5
    distance = np.abs(np.arange(given)[None, :] - np.clip(centre, 0, given - 1)[:, None])
    weight = np.maximum(1.0 - distance / reach, 0.0)
    whole: NDArray[np.float64] = np.floor(weight / weight.sum(axis=1, keepdims=True) * 4096 + 0.5)
    whole[np.arange(wanted), whole.argmax(axis=1)] += 4096 - whole.sum(axis=1)
    return whole


def numbered(count: int, names: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of ``count`` classes: the given ones if there are that many, else the numbers."""
    return tuple(names) if len(names) == count else tuple(str(i) for i in range(count))
