"""``open_data("cifar10:DIR", …)``: from a data set's name to two loaders."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from convoy.data import digits
from convoy.data.augment import Augment
from convoy.data.cifar import read_cifar
from convoy.data.folder import FolderSource, read_folder
from convoy.data.idx import read_mnist
from convoy.data.keys import key, permutation
from convoy.data.loader import Loader, checked_count
from convoy.data.source import ArraySource, Parts, Source, channel_moments
from convoy.errors import DataError

_SUBSET = 3  # the purpose of a key, beside those of the loader
_MOST_DECODED = 1024  # images of a folder that are decoded to find its mean and deviation


@dataclass(frozen=True, slots=True)
class DataBundle:
    """A data set ready for training. ``sample_shape`` is (C, H, W) of x, ``classes`` names the values of y.

    ``mean`` and ``deviation`` are what both parts are normalised with: per channel of the training part, in pixel
    values 0…255. ``notes`` are sentences that belong beside any result.
    """

    train: Loader
    validation: Loader
    classes: tuple[str, ...]
    sample_shape: tuple[int, int, int]
    name: str
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Kind:
    """One kind of data: how it is read (DIR, image size), what augmentation suits it, and whether that is usual."""

    read: Callable[[str | None, int | None], Parts]
    flip: bool
    usual: bool = False


_KINDS = {
    "digits": _Kind(lambda given, size: _digits(given, size), flip=False),
    "mnist": _Kind(lambda given, size: _resized(read_mnist(given), size), flip=False),
    "cifar10": _Kind(lambda given, size: _resized(read_cifar("cifar10", given), size), flip=True, usual=True),
    "cifar100": _Kind(lambda given, size: _resized(read_cifar("cifar100", given), size), flip=True, usual=True),
    "folder": _Kind(lambda given, size: read_folder(given, size), flip=True),
}
KINDS = tuple(_KINDS)


def open_data(
    spec: str,
    *,
    batch_size: int,
    seed: int = 0,
    image_size: int | None = None,
    augment: bool | None = None,
    limit: int | None = None,
    channels_last: bool = False,
    prefetch: int = 1,
) -> DataBundle:
    """Open ``KIND[:DIR]``: digits, mnist, cifar10, cifar100 or folder.

    Without DIR the files are looked for in the folder CONVOY_DATA, else in ./data. ``image_size`` resizes to a
    square (digits: 28 unless given, 8 as stored). ``augment`` is random crop after padding by an eighth of the side,
    and flip except for digits; None means for the CIFARs only. ``limit`` keeps that many samples of each part, drawn
    by seed; mean and deviation stay those of the whole training part. DataError says what is wrong with the input.
    """
    kind_name, _, folder = spec.partition(":")
    kind = _KINDS.get(kind_name)
    if kind is None:
        near = difflib.get_close_matches(kind_name.lower(), KINDS, n=1)
        raise DataError(
            f"there is no data set of the kind {kind_name!r}",
            hint=f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(KINDS)}, as in mnist:DIR",
        )
    checked_count("batch_size", batch_size, least=1)
    if image_size is not None:
        checked_count("image_size", image_size, least=1)
    if limit is not None:
        checked_count("limit", limit, least=1)
    parts = kind.read(folder or None, image_size)
    mean, deviation = channel_moments(parts.train, _MOST_DECODED if isinstance(parts.train, FolderSource) else None)
    shape = parts.train.shape
    wanted = kind.usual if augment is None else augment
    loaders = [
        Loader(
            _limited(source, limit, key(_SUBSET, seed, part)),
            batch_size=batch_size,
            mean=mean,
            deviation=deviation,
            seed=seed,
            shuffle=part == 0,
            augment=Augment(padding=max(1, shape[1] // 8), flip=kind.flip) if wanted and part == 0 else None,
            channels_last=channels_last,
            prefetch=prefetch,
        )
        for part, source in enumerate((parts.train, parts.validation))
    ]
    notes, count = parts.notes, len(loaders[0].source.labels)
    if batch_size > count:
        notes = (*notes, f"every epoch is one mini-batch of {count} images: there are no {batch_size} to train on")
    return DataBundle(loaders[0], loaders[1], parts.classes, shape, parts.name, mean, deviation, notes)


def _digits(given: str | None, size: int | None) -> Parts:
    if given:
        raise DataError(
            f"'digits' is embedded and takes no folder, but {given!r} was given",
            hint=f"use 'digits' alone, or mnist:{given} for MNIST files",
        )
    return _resized(digits.read_digits(), size or digits.DEFAULT_SIZE)


def _resized(parts: Parts, size: int | None) -> Parts:
    if size is None or not (isinstance(parts.train, ArraySource) and isinstance(parts.validation, ArraySource)):
        return parts
    return replace(parts, train=parts.train.resized(size), validation=parts.validation.resized(size))


def _limited(source: Source, limit: int | None, of: int) -> Source:
    count = len(source.labels)
    if limit is None or limit >= count:
        return source
    return source.select(np.sort(permutation(of, count)[:limit]))
