from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from convoy.errors import DataError
from convoy.strategies.batch import batch_size, call, channels_last, detach, prepare_model, split_batch, to_device

Pair = namedtuple("Pair", "a b")


@dataclass
class Output:
    logits: torch.Tensor
    more: tuple | None = None


def test_pairs_and_mappings_are_split():
    x, y = torch.zeros(2), torch.ones(2)
    assert split_batch((x, y)) == (x, y) and split_batch([x, y]) == (x, y)
    batch = {"a": x, "labels": y}
    assert split_batch(batch) == (batch, batch)


@pytest.mark.parametrize(
    ("wrong", "named"), [((1, 2, 3), "a tuple of 3"), ([1], "a list of 1"), (torch.zeros(2), "a Tensor")]
)
def test_what_is_neither_is_named(wrong, named):
    with pytest.raises(DataError, match=named):
        split_batch(wrong)


def test_the_model_is_called_with_what_the_batch_is():
    def model(*args, **kwargs):
        return args, kwargs

    assert call(model, (1, 2)) == ((1, 2), {}) == call(model, [1, 2])
    assert call(model, {"a": 1}) == ((), {"a": 1})
    assert call(model, 5) == ((5,), {})


@pytest.mark.parametrize(
    "make",
    [
        lambda t: t,
        lambda t: (t, 3),
        lambda t: [t],
        lambda t: {"a": t, "b": None},
        lambda t: OrderedDict(a=t),
        lambda t: Pair(t, "x"),
        lambda t: Output(t, (t, None)),
    ],
)
def test_detach_keeps_the_form_and_not_the_history(make):
    tensor = torch.ones(2, requires_grad=True) * 2
    value = make(tensor)
    result = detach(value)
    assert type(result) is type(value)

    def first(v):
        if isinstance(v, torch.Tensor):
            return v
        if isinstance(v, Output):
            return v.logits
        return next(iter(v.values() if isinstance(v, dict) else v))

    assert first(value).requires_grad and not first(result).requires_grad
    assert torch.equal(first(result), tensor)


def test_the_output_of_a_hugging_face_model_is_detached():
    outputs = pytest.importorskip("transformers.modeling_outputs")
    value = outputs.ImageClassifierOutputWithNoAttention(
        loss=None, logits=torch.ones(2, requires_grad=True) * 2, hidden_states=(torch.ones(1, requires_grad=True),)
    )
    result = detach(value)
    assert type(result) is type(value) and result["logits"] is result.logits
    assert not result.logits.requires_grad and not result.hidden_states[0].requires_grad and result.loss is None


def test_batch_size_is_that_of_the_first_tensor_with_dimensions():
    assert batch_size(torch.zeros(3, 2)) == 3
    assert batch_size({"scale": torch.tensor(1.0), "x": [torch.zeros(4, 1)]}) == 4
    assert batch_size(Output(torch.zeros(5, 1))) == 5
    with pytest.raises(DataError, match="no tensor with a batch dimension"):
        batch_size({"a": 3})


def test_only_images_become_channels_last_and_values_stay():
    image, ids, flat = torch.randn(2, 3, 4, 4), torch.randint(0, 5, (2, 3, 4, 4)), torch.randn(2, 3)
    result = channels_last({"image": image, "ids": ids, "flat": flat})
    assert result["image"].is_contiguous(memory_format=torch.channels_last) and torch.equal(result["image"], image)
    assert channels_last(torch.randn(2, 1, 4, 4)).stride() == (16, 1, 4, 1)
    assert result["ids"] is ids and result["flat"] is flat
    assert channels_last(result["image"]) is result["image"]


def test_to_device_passes_on_what_is_there():
    batch = {"a": torch.zeros(2), "b": 3}
    assert to_device(batch, "cpu") is batch


def test_prepare_model_changes_layout_only():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv3d(2, 3, 3), nn.Linear(3, 3))
    before = [(p, p.detach().clone()) for p in model.parameters()]
    prepare_model(model, torch.optim.SGD(model.parameters(), lr=0.1), "cpu", True)
    for (was, values), now in zip(before, model.parameters(), strict=True):
        assert now is was and torch.equal(now, values)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert model[1].weight.is_contiguous()
