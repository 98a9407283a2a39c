"""A Dataset or DataLoader of the user's own, under the same protocol as the built-in loaders."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, SequentialSampler

from convoy.data.keys import key, permutation
from convoy.data.loader import Batches, Loader, batch_count, checked_count
from convoy.errors import DataError

_TARGETS = ("labels", "label", "targets", "target")
_ORDER, _WORKERS = 1, 4  # purposes of keys; the order is that of a built-in loader


def as_loader(
    data: object,
    *,
    batch_size: int | None = None,
    seed: int = 0,
    shuffle: bool = True,
    drop_last: bool = False,
    collate: Callable[[list[Any]], Any] | None = None,
    workers: int = 0,
) -> Batches:
    """Wrap what the user has: a ``Loader`` and a ``DataLoader`` as they are, a map-style ``Dataset`` in our order.

    Batches must be pairs (x, y), or mappings with one of the keys labels, label, targets, target, which becomes y.
    ``batch_size``, ``seed``, ``shuffle``, ``drop_last``, ``collate`` and ``workers`` serve a Dataset only; a
    DataLoader brings its own. Random transforms inside a Dataset draw from the generators they use: seed them there.
    """
    if isinstance(data, Loader | DatasetLoader | UserLoader):
        return data
    if isinstance(data, DataLoader):
        return UserLoader(data)
    if isinstance(data, IterableDataset):
        raise DataError(
            f"{type(data).__name__} has no order of its own to be shuffled or resumed",
            hint="wrap it in a torch.utils.data.DataLoader with the batch size you want",
        )
    if not (hasattr(data, "__getitem__") and isinstance(data, Sized)):
        raise DataError(
            f"{type(data).__name__} is neither a DataLoader nor a Dataset with __getitem__ and __len__",
            hint="wrap your data in a torch.utils.data.Dataset or DataLoader",
        )
    if batch_size is None:
        raise DataError(f"no batch size was given for {type(data).__name__}", hint="pass batch_size=…, or a DataLoader")
    return DatasetLoader(
        data,  # type: ignore[arg-type]  # a Dataset by its methods; lists of pairs serve too
        batch_size=batch_size,
        seed=seed,
        shuffle=shuffle,
        drop_last=drop_last,
        collate=collate,
        workers=workers,
    )


def as_pair(batch: Any) -> tuple[Any, Any]:
    """(x, y) of one collated batch; DataError if it is neither a pair nor a mapping with a target."""
    if isinstance(batch, Mapping):
        for name in _TARGETS:
            if name in batch:
                return {k: v for k, v in batch.items() if k != name}, batch[name]
        raise DataError(
            f"a batch is a mapping with the keys {', '.join(map(str, batch))}, none of which is a target",
            hint=f"name the target one of {', '.join(_TARGETS)}, or yield (x, y)",
        )
    if isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) == 2:
        return batch[0], batch[1]
    size = f" of {len(batch)}" if isinstance(batch, Sequence) else ""
    raise DataError(f"a batch is a {type(batch).__name__}{size}, not a pair (x, y)", hint="yield (inputs, targets)")


class DatasetLoader:
    """A map-style Dataset in the order of (seed, epoch), collated by torch; skipped batches are never read.

    No global generator is drawn from: worker processes are seeded by (seed, epoch).
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        collate: Callable[[list[Any]], Any] | None = None,
        workers: int = 0,
    ) -> None:
        self.dataset = dataset
        self._size = len(dataset)  # type: ignore[arg-type]  # as_loader has seen its __len__
        if self._size == 0:
            raise DataError(
                f"the {type(dataset).__name__} is empty", hint="check the path and filters it was made with"
            )
        self._batch_size = checked_count("batch_size", batch_size, least=1)
        self._workers = checked_count("workers", workers, least=0)
        self.seed, self.shuffle, self.drop_last = seed, shuffle, drop_last
        self._collate = collate
        self._epoch = 0

    @property
    def batch_size(self) -> int:
        return self._batch_size

    @property
    def dataset_size(self) -> int:
        return self._size

    def __len__(self) -> int:
        return batch_count(self._size, self._batch_size, self.drop_last)

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        epoch = self._epoch
        yield from self.iterate(epoch)
        self._epoch = epoch + 1

    def iterate(self, epoch: int, start_batch: int = 0) -> Iterator[tuple[Any, Any]]:
        """The batches of ``epoch`` from ``start_batch`` on."""
        checked_count("start_batch", start_batch, least=0)
        order = permutation(key(_ORDER, self.seed, epoch), self._size).tolist() if self.shuffle else range(self._size)
        size = self._batch_size
        batches = [list(order[i * size : (i + 1) * size]) for i in range(start_batch, len(self))]
        generator = torch.Generator().manual_seed(key(_WORKERS, self.seed, epoch) >> 1)
        loader = DataLoader(
            self.dataset,
            batch_sampler=batches,
            num_workers=self._workers,
            collate_fn=self._collate,
            generator=generator,
        )
        return map(as_pair, loader)


class UserLoader:
    """A DataLoader of the user's, used as it is: its sampler, workers, collation and generator.

    To start within an epoch, the batches before are read and dropped. To start at a later epoch than the next one
    (a resumed run), the draws of the epochs between are made up for, without reading data: so a loader that is
    seeded alike, by its own ``generator`` or by ``torch.manual_seed``, gives the order of an unbroken run. Samplers
    with ``set_epoch`` are told the epoch instead.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader
        self._epoch = 0
        self._next = 0  # the epoch whose draws come next from the generator

    @property
    def batch_size(self) -> int | None:
        return self.loader.batch_size or getattr(self.loader.batch_sampler, "batch_size", None)

    @property
    def dataset_size(self) -> int | None:
        dataset: Any = self.loader.dataset
        return len(dataset) if isinstance(dataset, Sized) else None

    def __len__(self) -> int:
        return len(self.loader)

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        epoch = self._epoch
        yield from self.iterate(epoch)
        self._epoch = epoch + 1

    def iterate(self, epoch: int, start_batch: int = 0) -> Iterator[tuple[Any, Any]]:
        """The batches of ``epoch`` from ``start_batch`` on."""
        checked_count("start_batch", start_batch, least=0)
        samplers: tuple[Any, ...] = (self.loader.sampler, self.loader.batch_sampler)
        for sampler in samplers:
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
        while self._next < epoch:
            self._draw_epoch()
        self._next = epoch + 1
        return map(as_pair, islice(iter(self.loader), start_batch, None))

    def _draw_epoch(self) -> None:
        """What one epoch takes from the generator: the seed of the workers, then whatever the sampler draws."""
        torch.empty((), dtype=torch.int64).random_(generator=self.loader.generator)
        sampler = self.loader.sampler
        drawn = not isinstance(self.loader.dataset, IterableDataset) and not isinstance(sampler, SequentialSampler)
        if drawn and not hasattr(sampler, "set_epoch"):
            indices: Any = sampler if self.loader.batch_sampler is None else self.loader.batch_sampler
            deque(indices, maxlen=0)
        self._next += 1
