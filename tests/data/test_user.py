from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset

from convoy.data import DatasetLoader, Loader, UserLoader, as_loader, open_data
from convoy.data.source import ArraySource
from convoy.errors import DataError

COUNT = 23
PAIRS = TensorDataset(torch.arange(COUNT).float()[:, None], torch.arange(COUNT))


class Counting(Dataset[Any]):
    def __init__(self) -> None:
        self.read: list[int] = []

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        self.read.append(index)
        return torch.tensor([float(index)]), index


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([(torch.tensor([float(i)]), i) for i in range(7)])


def targets(batches: Any) -> list[list[int]]:
    return [y.tolist() for _, y in batches]


def test_a_dataset_in_our_order() -> None:
    one = as_loader(Counting(), batch_size=5, seed=3)
    assert isinstance(one, DatasetLoader)
    assert (one.dataset_size, one.batch_size, len(one)) == (COUNT, 5, 5)
    batches = list(one.iterate(2))
    assert [len(y) for _, y in batches] == [5, 5, 5, 5, 3]
    assert all(torch.equal(x[:, 0].long(), y) for x, y in batches)
    assert sorted(torch.cat([y for _, y in batches]).tolist()) == list(range(COUNT))
    # the same order as a built-in loader with this seed
    built_in = Loader(
        ArraySource(np.zeros((COUNT, 1, 1, 1), np.uint8), np.arange(COUNT)),
        batch_size=5, seed=3, shuffle=True, mean=(0.0,), deviation=(1.0,),
    )  # fmt: skip
    assert targets(built_in.iterate(2)) == targets(batches)
    assert targets(one.iterate(1)) != targets(batches)


def test_a_dataset_without_shuffling_or_its_last_batch() -> None:
    plain = as_loader(PAIRS, batch_size=10, shuffle=False)
    assert targets(plain) == [[*range(10)], [*range(10, 20)], [20, 21, 22]]
    assert targets(as_loader(PAIRS, batch_size=10, shuffle=False, drop_last=True)) == [[*range(10)], [*range(10, 20)]]


def test_a_plain_loop_goes_through_the_epochs() -> None:
    one = as_loader(PAIRS, batch_size=10)
    assert [targets(one), targets(one)] == [targets(one.iterate(0)), targets(one.iterate(1))]
    one.set_epoch(0)
    assert targets(one) == targets(one.iterate(0))


def test_batches_before_the_start_are_not_read() -> None:
    data = Counting()
    one = as_loader(data, batch_size=5)
    whole = targets(one.iterate(0))
    data.read.clear()
    assert targets(one.iterate(0, 3)) == whole[3:]
    assert len(data.read) == 8


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12+ warns where torch has threads
def test_workers_change_nothing_and_the_global_generator_stays() -> None:
    before = torch.get_rng_state()
    alone = targets(as_loader(PAIRS, batch_size=5, seed=1).iterate(0))
    assert targets(as_loader(PAIRS, batch_size=5, seed=1, workers=2).iterate(0)) == alone
    assert torch.equal(torch.get_rng_state(), before)


def test_collate_and_lists_serve_too() -> None:
    pairs = [(i, i % 3) for i in range(6)]
    loader = as_loader(pairs, batch_size=4, shuffle=False, collate=lambda rows: (len(rows), rows))
    assert [x for x, _ in loader] == [4, 2]


def seeded(seed: int = 7, **options: Any) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(PAIRS, batch_size=5, shuffle=True, generator=generator, **options)


def test_a_data_loader_is_used_as_it_is() -> None:
    plain, ours = seeded(), as_loader(seeded())
    assert isinstance(ours, UserLoader)
    assert (ours.dataset_size, ours.batch_size, len(ours)) == (COUNT, 5, 5)
    for epoch in range(3):
        assert targets(ours.iterate(epoch)) == targets(plain)


def replacing() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    sampler = RandomSampler(PAIRS, replacement=True, generator=generator)
    return DataLoader(PAIRS, batch_size=4, sampler=sampler, generator=generator)


@pytest.mark.parametrize("build", [seeded, replacing, lambda: seeded(drop_last=True)])
def test_a_resumed_run_sees_the_order_of_an_unbroken_one(build: Any) -> None:
    unbroken = as_loader(build())
    epochs = [targets(unbroken.iterate(epoch)) for epoch in range(5)]
    resumed = as_loader(build())
    assert targets(resumed.iterate(3, start_batch=2)) == epochs[3][2:]
    assert targets(resumed.iterate(4)) == epochs[4]


def test_a_resumed_run_with_the_global_seed() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        unbroken = as_loader(DataLoader(PAIRS, batch_size=5, shuffle=True))
        epochs = [targets(unbroken.iterate(epoch)) for epoch in range(3)]
        torch.manual_seed(5)
        assert targets(as_loader(DataLoader(PAIRS, batch_size=5, shuffle=True)).iterate(2)) == epochs[2]


def test_samplers_are_told_the_epoch() -> None:
    class Told(RandomSampler):
        told = -1

        def set_epoch(self, epoch: int) -> None:
            self.told = epoch

        def __iter__(self) -> Iterator[int]:
            return iter([self.told] * 2)

    loader = as_loader(DataLoader(PAIRS, batch_size=2, sampler=Told(PAIRS)))
    assert targets(loader.iterate(4)) == [[4, 4]]
    assert targets(loader.iterate(6)) == [[6, 6]]


def test_an_iterable_dataset_in_a_data_loader() -> None:
    loader = as_loader(DataLoader(Stream(), batch_size=3))
    assert loader.dataset_size is None
    assert targets(loader.iterate(2, start_batch=1)) == [[3, 4, 5], [6]]
    with pytest.raises(TypeError):
        len(loader)


def test_mappings_give_up_their_target() -> None:
    rows = [{"pixel_values": torch.ones(2) * i, "labels": i} for i in range(4)]
    ((x, y),) = as_loader(rows, batch_size=4, shuffle=False)
    assert list(x) == ["pixel_values"]
    assert x["pixel_values"].shape == (4, 2)
    assert y.tolist() == [0, 1, 2, 3]


def test_our_own_loaders_pass_through() -> None:
    train = open_data("digits", batch_size=10).train
    wrapped = as_loader(PAIRS, batch_size=4)
    assert as_loader(train) is train
    assert as_loader(wrapped) is wrapped


@pytest.mark.parametrize(
    ("data", "options", "said"),
    [
        (PAIRS, {}, "no batch size was given for TensorDataset"),
        (PAIRS, {"batch_size": 0}, "batch_size must be a whole number of at least 1, not 0"),
        (PAIRS, {"batch_size": 2, "workers": -1}, "workers must be a whole number"),
        ([], {"batch_size": 2}, "the list is empty"),
        (Stream(), {"batch_size": 2}, "Stream has no order of its own"),
        (17, {"batch_size": 2}, "int is neither a DataLoader nor a Dataset"),
    ],
)
def test_what_cannot_be_wrapped(data: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        as_loader(data, **options)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([torch.ones(2)] * 2, "a batch is a Tensor, not a pair"),
        ([(1, 2, 3)] * 2, "a batch is a list of 3, not a pair"),
        ([{"image": 1, "klass": 2}] * 2, "the keys image, klass, none of which is a target"),
    ],
)
def test_batches_that_are_no_pairs(rows: list[Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        next(iter(as_loader(rows, batch_size=2)))
