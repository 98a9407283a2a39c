import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler

from convoy.data.user import as_loader
from convoy.errors import CheckpointError, DataError
from convoy.training.feed import Feed
from convoy.training.random_state import random_state, restore_random_state


class Noisy(Dataset):
    """Draws from all three global generators, as transforms do."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return torch.tensor([index, torch.rand(()), random.random(), np.random.rand(), np.random.randn()]), index


class Stream(IterableDataset):
    def __iter__(self):
        return ((torch.rand(3), i) for i in range(20))


LOADERS = {
    "shuffled": lambda: DataLoader(Noisy(), batch_size=4, shuffle=True),
    "own generator": lambda: DataLoader(
        Noisy(), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(4)
    ),
    "own sampler": lambda: DataLoader(
        Noisy(), batch_size=4, sampler=RandomSampler(Noisy(), generator=torch.Generator().manual_seed(4))
    ),
    "stream": lambda: DataLoader(Stream(), batch_size=4),
    "wrapped": lambda: as_loader(DataLoader(Noisy(), batch_size=4, shuffle=True)),
    "workers": lambda: DataLoader(Noisy(), batch_size=4, shuffle=True, num_workers=1),
}


def same(a, b):
    assert len(a) == len(b)
    for (x, y), (p, q) in zip(a, b, strict=True):
        assert torch.equal(x, p) and torch.equal(y, q)


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("at", [0, 3, 5])
def test_an_epoch_goes_on_as_the_unbroken_one(kind, at):
    def seed(value):
        torch.manual_seed(value)
        random.seed(value)
        np.random.seed(value)

    def take(batches, count):
        taken = []
        for _ in range(count):
            taken.append(next(batches))
            torch.rand(3)  # a model that draws, too
        return taken

    seed(1)
    feed = Feed(LOADERS[kind]())
    list(feed.epoch(0))
    batches = feed.epoch(1)
    take(batches, at)
    start, now = feed.epoch_start, feed.random_state()
    rest = take(batches, 5 - at)
    assert next(batches, None) is None
    third = list(feed.epoch(2))

    seed(99)
    again = Feed(LOADERS[kind]())
    batches = again.resume(1, at, start, now)
    same(take(batches, 5 - at), rest)
    assert next(batches, None) is None
    same(list(again.epoch(2)), third)


def test_between_epochs_only_the_present_state_counts():
    torch.manual_seed(1)
    feed = Feed(LOADERS["shuffled"]())
    list(feed.epoch(0))
    now = feed.random_state()
    expected = list(feed.epoch(1))
    torch.manual_seed(99)
    batches = Feed(LOADERS["shuffled"]()).resume(1, 0, None, now)
    same(list(batches), expected)


def test_a_loader_that_can_start_anywhere_is_asked_to():
    asked = []

    class Own:
        def iterate(self, epoch, start_batch=0):
            asked.append((epoch, start_batch))
            return iter([1, 2, 3][start_batch:])

        def __iter__(self):
            raise AssertionError

    feed = Feed(Own())
    assert list(feed.epoch(4)) == [1, 2, 3]
    assert list(feed.resume(5, 2, feed.epoch_start, random_state())) == [3]
    assert asked == [(4, 0), (5, 2)]


def test_samplers_are_told_the_epoch():
    told = []

    class Sampler(RandomSampler):
        def set_epoch(self, epoch):
            told.append(epoch)

    feed = Feed(DataLoader(Noisy(), batch_size=4, sampler=Sampler(Noisy())))
    list(feed.epoch(7))
    assert told == [7]


def test_a_loader_that_got_shorter_is_refused():
    feed = Feed([(torch.zeros(1), 0)] * 3)
    start = random_state()
    with pytest.raises(CheckpointError, match="stands at batch 5 of its epoch, but the loader has only 3"):
        feed.resume(0, 5, start, start)


@pytest.mark.parametrize("wrong", [Noisy(), 3, None])
def test_what_yields_no_batches_is_refused(wrong):
    with pytest.raises(DataError, match="does not yield batches"):
        Feed(wrong)


def test_generators_come_back():
    state = random_state()
    first = (random.random(), random.gauss(0, 1), np.random.randn(), torch.rand(2).tolist())
    again = (random.gauss(0, 1), np.random.randn())
    restore_random_state(state)
    assert (random.random(), random.gauss(0, 1), np.random.randn(), torch.rand(2).tolist()) == first
    middle = random_state()  # half of a pair of normal numbers is kept by Python and NumPy
    assert (random.gauss(0, 1), np.random.randn()) == again
    restore_random_state(middle)
    assert (random.gauss(0, 1), np.random.randn()) == again
