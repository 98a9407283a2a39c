from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from convoy.data.augment import Augment
from convoy.data.loader import Loader
from convoy.data.source import ArraySource
from convoy.errors import DataError

COUNT = 53
IMAGES = np.random.default_rng(1).integers(0, 256, (COUNT, 3, 8, 6), dtype=np.uint8)
SOURCE = ArraySource(IMAGES, np.arange(COUNT))  # the label tells which sample it is
MEAN, DEVIATION = (10.0, 20.0, 30.0), (2.0, 4.0, 7.0)


def loader(**changes: object) -> Loader:
    fields = {"batch_size": 10, "seed": 3, "shuffle": True, "augment": Augment(2, True), "prefetch": 0, **changes}
    return Loader(SOURCE, mean=MEAN, deviation=DEVIATION, **fields)  # type: ignore[arg-type]


def joined(batches: object) -> tuple[torch.Tensor, torch.Tensor]:
    xs, ys = zip(*batches, strict=True)  # type: ignore[call-overload]
    return torch.cat(xs), torch.cat(ys)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 60), prefetch=st.integers(0, 3), epoch=st.integers(0, 5), seed=st.integers(-5, 2**40))
def test_numbers_do_not_depend_on_batch_size_or_prefetch(size: int, prefetch: int, epoch: int, seed: int) -> None:
    x, y = joined(loader(seed=seed).iterate(epoch))
    other_x, other_y = joined(loader(seed=seed, batch_size=size, prefetch=prefetch).iterate(epoch))
    assert torch.equal(y, other_y)
    assert torch.equal(x, other_x)


def test_augmentation_does_not_depend_on_the_order() -> None:
    x, y = joined(loader().iterate(4))
    plain_x, plain_y = joined(loader(shuffle=False).iterate(4))
    assert plain_y.tolist() == list(range(COUNT))
    assert torch.equal(plain_x[y], x)


@settings(max_examples=30, deadline=None)
@given(start=st.integers(0, 8), prefetch=st.integers(0, 2), drop=st.booleans())
def test_an_epoch_goes_on_from_any_batch(start: int, prefetch: int, drop: bool) -> None:
    one = loader(prefetch=prefetch, drop_last=drop)
    rest, resumed = list(one.iterate(2))[start:], list(one.iterate(2, start))
    assert len(rest) == len(resumed) == max(0, len(one) - start)
    for (x, y), (again_x, again_y) in zip(rest, resumed, strict=True):
        assert torch.equal(x, again_x)
        assert torch.equal(y, again_y)


def test_skipped_batches_are_never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    take = SOURCE.take
    monkeypatch.setattr(SOURCE, "take", lambda indices: read.append(len(indices)) or take(indices))
    assert len(list(loader().iterate(0, start_batch=4))) == 2
    assert read == [10, 3]


def test_every_sample_once_and_the_last_batch_smaller() -> None:
    batches = list(loader().iterate(0))
    assert [len(y) for _, y in batches] == [10, 10, 10, 10, 10, 3]
    assert sorted(torch.cat([y for _, y in batches]).tolist()) == list(range(COUNT))
    assert len(loader()) == 6
    assert [len(y) for _, y in loader(drop_last=True).iterate(0)] == [10] * 5
    assert len(loader(drop_last=True)) == 5
    assert len(loader(batch_size=COUNT)) == len(loader(batch_size=COUNT, drop_last=True)) == 1


def test_epochs_and_seeds_differ() -> None:
    def first(one: Loader, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        return joined(one.iterate(epoch))

    x, y = first(loader(), 0)
    for changed_x, changed_y in (first(loader(), 1), first(loader(seed=4), 0)):
        assert not torch.equal(y, changed_y)
        assert not torch.equal(x[y.argsort()], changed_x[changed_y.argsort()])  # augmented differently, too


def test_normalised_by_channel_without_augmentation() -> None:
    x, y = joined(loader(augment=None).iterate(0))
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    scaled = (IMAGES - np.reshape(MEAN, (3, 1, 1))) / np.reshape(DEVIATION, (3, 1, 1))
    assert torch.allclose(x, torch.from_numpy(scaled[y.numpy()]).float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("augment", [None, Augment(2, True)])
def test_channels_last_holds_the_same_bits(augment: Augment | None) -> None:
    x, _ = joined(loader(augment=augment).iterate(0))
    for (last, _), rows in zip(loader(channels_last=True, augment=augment).iterate(0), x.split(10), strict=True):
        assert last.is_contiguous(memory_format=torch.channels_last)
        assert rows.is_contiguous()
        assert torch.equal(last, rows)


def test_batches_own_their_memory() -> None:
    before = IMAGES.copy()
    one = loader(augment=None, shuffle=False)
    x, y = next(one.iterate(0))
    kept = x.clone()
    x.zero_()
    y.zero_()
    again, labels = next(one.iterate(0))
    assert torch.equal(again, kept)
    assert labels.tolist() == list(range(10))
    next(loader(augment=Augment(0, True), shuffle=False).iterate(0))
    assert (before == IMAGES).all()


def test_a_plain_loop_goes_through_the_epochs() -> None:
    one = loader()
    first, second = joined(one)[1], joined(one)[1]
    assert torch.equal(first, joined(loader().iterate(0))[1])
    assert torch.equal(second, joined(loader().iterate(1))[1])
    next(iter(one))  # a look at the first batch does not use up the epoch
    one.set_epoch(0)
    assert torch.equal(joined(one)[1], first)


def test_fetch_is_what_iteration_gives() -> None:
    one = loader()
    x, y = next(one.iterate(5))
    again, labels = one.fetch(y.numpy(), epoch=5)
    assert torch.equal(x, again)
    assert torch.equal(y, labels)


@pytest.mark.parametrize(
    ("field", "value"),
    [("batch_size", 0), ("batch_size", -3), ("batch_size", 2.5), ("batch_size", True), ("prefetch", -1)],
)
def test_wrong_counts_are_refused(field: str, value: object) -> None:
    with pytest.raises(DataError, match=rf"{field} must be a whole number of at least \d, not {value!r}") as caught:
        loader(**{field: value})
    assert caught.value.hint


def test_a_negative_start_is_refused_at_once() -> None:
    with pytest.raises(DataError, match="start_batch"):
        loader().iterate(0, -1)
