"""Mini-batches in an order that depends on (seed, epoch) alone, from any batch of any epoch onwards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from convoy.data.augment import Augment
from convoy.data.background import ahead
from convoy.data.keys import draws, key, permutation
from convoy.data.source import Source
from convoy.errors import DataError

Batch: TypeAlias = "tuple[torch.Tensor, torch.Tensor]"

_ORDER, _AUGMENT = 1, 2  # purposes: the first part of a key


class Batches(Protocol):
    """What training takes: batches (x, y) by epoch, resumable in the middle of one.

    ``Loader`` reads the built-in sets; ``as_loader`` wraps a Dataset or DataLoader of the user's.
    """

    @property
    def batch_size(self) -> int | None:
        """Samples of a full batch; None where the user's DataLoader does not say."""
        ...

    @property
    def dataset_size(self) -> int | None:
        """Samples of an epoch; None where that is not known beforehand."""
        ...

    def iterate(self, epoch: int, start_batch: int = 0) -> Iterator[tuple[Any, Any]]:
        """The batches of an epoch (counted from 0) from ``start_batch`` on."""
        ...

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next ``for`` over this object takes."""
        ...

    def __iter__(self) -> Iterator[tuple[Any, Any]]: ...

    def __len__(self) -> int:
        """Batches of an epoch; TypeError where that is not known beforehand."""
        ...


class Loader:
    """Batches (x float32 [n, C, H, W], y int64 [n]) of a source, normalised and augmented.

    The order depends on (seed, epoch), the augmentation of a sample on (seed, epoch, its index): neither on batch
    size, prefetching or where iteration began. The last, smaller batch counts unless ``drop_last``. ``mean`` and
    ``deviation`` are per channel, in pixel values 0…255. ``prefetch`` batches are made ahead in a thread. A plain
    ``for`` takes the epoch of ``set_epoch`` and, once run to the end, moves on to the next.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        mean: tuple[float, ...],
        deviation: tuple[float, ...],
        seed: int = 0,
        shuffle: bool = False,
        drop_last: bool = False,
        augment: Augment | None = None,
        channels_last: bool = False,
        prefetch: int = 1,
    ) -> None:
        self._batch_size = checked_count("batch_size", batch_size, least=1)
        self._prefetch = checked_count("prefetch", prefetch, least=0)
        self.source = source
        self.seed, self.shuffle, self.drop_last = seed, shuffle, drop_last
        self.augment, self.channels_last = augment, channels_last
        self._mean = np.asarray(mean, np.float32)
        self._scale = np.float32(1.0) / np.asarray(deviation, np.float32)
        self._epoch = 0

    @property
    def batch_size(self) -> int:
        return self._batch_size

    @property
    def dataset_size(self) -> int:
        return len(self.source.labels)

    def __len__(self) -> int:
        return batch_count(self.dataset_size, self._batch_size, self.drop_last)

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        epoch = self._epoch
        yield from self.iterate(epoch)
        self._epoch = epoch + 1

    def iterate(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of ``epoch`` from ``start_batch`` on; those before it cost nothing."""
        checked_count("start_batch", start_batch, least=0)
        order = self.order(epoch)

        def make(batch: int) -> Batch:
            return self.fetch(order[batch * self._batch_size : (batch + 1) * self._batch_size], epoch)

        return ahead(make, range(start_batch, len(self)), self._prefetch)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The samples in the order of this epoch, [dataset_size]."""
        if not self.shuffle:
            return np.arange(self.dataset_size, dtype=np.int64)
        return permutation(key(_ORDER, self.seed, epoch), self.dataset_size)

    def fetch(self, indices: NDArray[np.int64], epoch: int) -> Batch:
        """The batch of these samples, as ``epoch`` would augment them; for readers with an order of their own."""
        images = self.source.take(indices)
        if self.augment is not None:
            images = self.augment.apply(images, draws(key(_AUGMENT, self.seed, epoch), indices))
        return self._normalised(images), torch.from_numpy(self.source.labels[indices])

    def _normalised(self, images: NDArray[np.uint8]) -> torch.Tensor:
        # NumPy rather than torch: one core, and no change to the thread settings of the one who trains.
        count, channels, height, width = images.shape
        if self.channels_last:
            values = np.empty((count, height, width, channels), np.float32).transpose(0, 3, 1, 2)
        else:
            values = np.empty(images.shape, np.float32)
        for channel in range(channels):  # several times faster than one transposing copy
            np.subtract(images[:, channel], self._mean[channel], out=values[:, channel], dtype=np.float32)
            values[:, channel] *= self._scale[channel]
        return torch.from_numpy(values)


def batch_count(samples: int, batch_size: int, drop_last: bool) -> int:
    """Batches of an epoch; the last, smaller one counts unless it is dropped."""
    return samples // batch_size if drop_last else -(-samples // batch_size)


def checked_count(name: str, value: object, *, least: int) -> int:
    """The value if it is a whole number from ``least`` on, else DataError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise DataError(
            f"{name} must be a whole number of at least {least}, not {value!r}", hint=f"for example {name}={least}"
        )
    return value
