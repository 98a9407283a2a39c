"""Batches of an epoch, also from its middle: the order of a resumed run is that of the unbroken one.

A loader with ``iterate(epoch, start_batch)`` (``convoy.data``) starts anywhere at no cost. With any other, such as a
DataLoader of the user's, the generators are put where they stood when the epoch began, the batches that were trained
already are read and dropped, and the generators are put where they stood at the checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader, Dataset

from convoy.data.user import UserLoader, as_pair
from convoy.errors import CheckpointError, DataError
from convoy.training.random_state import random_state, restore_random_state


class Feed:
    """The training data of a run. ``epoch_start``: the generators when the current epoch began."""

    def __init__(self, loader: Any) -> None:
        if isinstance(loader, Dataset) or not (hasattr(loader, "__iter__") or hasattr(loader, "iterate")):
            raise DataError(
                f"{type(loader).__name__} does not yield batches",
                hint="wrap it: torch.utils.data.DataLoader(data, batch_size=…) or convoy.data.as_loader(data, …)",
            )
        self._pairs = isinstance(loader, UserLoader)
        self.source: Any = loader.loader if isinstance(loader, UserLoader) else loader
        self.epoch_start: Mapping[str, Any] | None = None

    def __len__(self) -> int:
        """Batches per epoch; TypeError where the loader does not know."""
        return len(self.source)

    @property
    def batches(self) -> int | None:
        """Batches per epoch, where the loader knows."""
        try:
            return len(self)
        except TypeError:
            return None

    def random_state(self) -> dict[str, Any]:
        return random_state(self.source)

    def epoch(self, epoch: int) -> Iterator[Any]:
        """The batches of ``epoch`` (counted from 0), from its beginning."""
        self.epoch_start = self.random_state()
        return self._batches(epoch)

    def resume(
        self, epoch: int, start_batch: int, epoch_start: Mapping[str, Any] | None, now: Mapping[str, Any]
    ) -> Iterator[Any]:
        """The batches of ``epoch`` from ``start_batch`` on, where the generators stood as ``now`` says."""
        self.epoch_start = epoch_start
        if start_batch == 0 or epoch_start is None:
            restore_random_state(now if epoch_start is None else epoch_start, self.source)
            return self.epoch(epoch)
        if hasattr(self.source, "iterate"):
            batches: Iterator[Any] = iter(self.source.iterate(epoch, start_batch))
        else:
            restore_random_state(epoch_start, self.source)
            batches = self._batches(epoch)
            for skipped in range(start_batch):
                if next(batches, _END) is _END:
                    raise CheckpointError(
                        f"the checkpoint stands at batch {start_batch} of its epoch, but the loader has only {skipped}",
                        hint="resume with the data set and batch size of the run",
                    )
        restore_random_state(now, self.source)
        return batches

    def _batches(self, epoch: int) -> Iterator[Any]:
        if hasattr(self.source, "iterate"):
            return iter(self.source.iterate(epoch, 0))
        if isinstance(self.source, DataLoader):
            samplers: tuple[Any, ...] = (self.source.sampler, self.source.batch_sampler)
            for sampler in samplers:
                if hasattr(sampler, "set_epoch"):
                    sampler.set_epoch(epoch)
        source: Iterable[Any] = self.source
        return map(as_pair, source) if self._pairs else iter(source)


_END = object()
