"""The training data as leases see it: positions drawn once by seed, orders of local passes, and batches on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler

from convoy.data.background import ahead
from convoy.data.keys import key, permutation
from convoy.data.loader import Loader
from convoy.data.user import DatasetLoader, UserLoader, as_pair
from convoy.errors import DataError
from convoy.strategies.bilayered.ledger import Range

_ORDER, _WORKERS, _CUT = 1, 4, 5  # purposes of keys; the order is that of a built-in loader
HELD_OUT = 1000

Fetch = Callable[[list[NDArray[np.int64]], int], Iterator[tuple[Any, Any]]]


class Samples:
    """``size`` samples to train on in mini-batches of ``batch_size``, and ``held_out`` others to measure quality on.

    All that is random follows from ``seed``: so every node knows the order of any local pass by itself.
    """

    def __init__(self, fetch: Fetch, count: int, batch_size: int, *, seed: int, shuffle: bool, held_out: bool) -> None:
        self._fetch, self._seed, self._shuffle = fetch, seed, shuffle
        self.batch_size, self.count = batch_size, count
        apart = min(HELD_OUT, count // 10) if held_out else 0
        drawn = permutation(key(_CUT, seed), count)
        self.held_out, self._index = np.sort(drawn[:apart]), drawn[apart:]
        self._orders: dict[tuple[tuple[Range, ...], int], NDArray[np.int64]] = {}

    @property
    def size(self) -> int:
        return len(self._index)

    @property
    def batches(self) -> int:
        """Mini-batches of one plain epoch over all samples, the held-out ones too, as the user's loader has them."""
        return -(-self.count // self.batch_size)

    def order(self, ranges: Sequence[Range], number: int) -> NDArray[np.int64]:
        """The samples of these positions in the order of local pass ``number`` (from 1).

        It is the order that a plain loader has in epoch number − 1, with everything else left out.
        """
        name = (tuple(ranges), number)
        if name not in self._orders:
            chosen = np.zeros(self.count, bool)
            for start, stop in ranges:
                chosen[self._index[start:stop]] = True
            whole = permutation(key(_ORDER, self._seed, number - 1), self.count) if self._shuffle else None
            self._orders.clear()
            self._orders[name] = np.flatnonzero(chosen) if whole is None else whole[chosen[whole]]
        return self._orders[name]

    def minibatches(self, ranges: Sequence[Range], number: int, start: int, stop: int) -> list[NDArray[np.int64]]:
        """The mini-batches of places ``start`` … ``stop`` − 1 of that order.

        A last sample that would be alone joins the mini-batch before it (BatchNorm cannot do with one), unless the
        pass is over all samples, as in the plain loop.
        """
        order = self.order(ranges, number)
        cuts = list(range(start, stop, self.batch_size))
        if len(cuts) > 1 and stop - cuts[-1] == 1 and len(order) < self.count:
            cuts.pop()
        return [order[a:b] for a, b in zip(cuts, [*cuts[1:], stop], strict=True)]

    def fetch(self, batches: list[NDArray[np.int64]], number: int) -> Iterator[tuple[Any, Any]]:
        """(x, y) of each, as local pass ``number`` augments them."""
        return self._fetch(batches, number - 1)

    def quality_batches(self) -> Iterator[tuple[Any, Any]]:
        size = max(self.batch_size, 256)
        cuts = range(0, len(self.held_out), size)
        return self._fetch([self.held_out[a : a + size] for a in cuts], 0)


def samples_of(data: Any, *, seed: int, held_out: bool) -> Samples:
    """From what ``fit`` was given: a loader of ``convoy.data``, or a DataLoader, whose sampler leases replace.

    Raises DataError for data without an order of its own, and where leases would undo what a sampler is there for.
    """
    if isinstance(data, UserLoader):
        data = data.loader
    if isinstance(data, Loader):
        _refuse_drop_last(data.drop_last)

        def built_in(batches: list[NDArray[np.int64]], epoch: int) -> Iterator[tuple[Any, Any]]:
            return ahead(lambda place: data.fetch(batches[place], epoch), range(len(batches)), 1)

        return Samples(
            built_in, data.dataset_size, data.batch_size, seed=data.seed, shuffle=data.shuffle, held_out=held_out
        )
    if isinstance(data, DatasetLoader):
        _refuse_drop_last(data.drop_last)
        plain = DataLoader(data.dataset, collate_fn=data._collate, num_workers=data._workers)
        return Samples(
            _from_dataset(plain, data.seed),
            data.dataset_size,
            data.batch_size,
            seed=data.seed,
            shuffle=data.shuffle,
            held_out=held_out,
        )
    if not isinstance(data, DataLoader):
        raise DataError(
            f"{type(data).__name__} yields batches in an order of its own, but nodes lease samples by number",
            hint="pass a torch DataLoader over a map-style Dataset, or convoy.data.as_loader(dataset, batch_size=…)",
        )
    dataset: Dataset[Any] = data.dataset
    if isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized):
        raise DataError(
            f"{type(dataset).__name__} cannot be asked for a sample by its number, so nodes cannot lease parts of it",
            hint="use a Dataset with __getitem__ and __len__",
        )
    if data.batch_size is None or not isinstance(data.sampler, RandomSampler | SequentialSampler):
        sampler = data.batch_sampler if data.batch_size is None else data.sampler
        raise DataError(
            f"leases would replace the {type(sampler).__name__} of the DataLoader, and what it does would be lost",
            hint="give the DataLoader batch_size and shuffle alone, or train with another strategy",
        )
    if isinstance(data.sampler, RandomSampler) and data.sampler.replacement:
        raise DataError(
            "the DataLoader draws samples with replacement, but in a local pass each is trained exactly once",
            hint="use shuffle=True",
        )
    _refuse_drop_last(data.drop_last)
    shuffle = isinstance(data.sampler, RandomSampler)
    return Samples(
        _from_dataset(data, seed), len(dataset), data.batch_size, seed=seed, shuffle=shuffle, held_out=held_out
    )


def _refuse_drop_last(drop_last: bool) -> None:
    if drop_last:
        raise DataError(
            "the loader drops the last, smaller mini-batch, but in a local pass every sample held is trained",
            hint="build it with drop_last=False",
        )


def _from_dataset(like: DataLoader[Any], seed: int) -> Fetch:
    """Batches of the loader's data set by number, made as the loader makes them."""

    def fetch(batches: list[NDArray[np.int64]], epoch: int) -> Iterator[tuple[Any, Any]]:
        loader = DataLoader(
            like.dataset,
            batch_sampler=[batch.tolist() for batch in batches],
            num_workers=like.num_workers,
            collate_fn=like.collate_fn,
            pin_memory=like.pin_memory,
            timeout=like.timeout,
            worker_init_fn=like.worker_init_fn,
            multiprocessing_context=like.multiprocessing_context,
            generator=torch.Generator().manual_seed(key(_WORKERS, seed, epoch) >> 1),
        )
        return map(as_pair, loader)

    return fetch
