import json
import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convoy.errors import CheckpointError
from convoy.training.codec import dense_strides, pack, unpack, with_strides


def round_trip(value):
    tensors = {}
    text = json.dumps(pack(value, tensors, "state"), allow_nan=False)
    return unpack(json.loads(text), tensors)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.tuples(st.integers(), st.text()), inner)
    ),
    max_leaves=20,
)


@given(plain)
def test_plain_values_come_back_the_same(value):
    back = round_trip(value)
    assert back == value and repr(back) == repr(value)  # types of numbers and containers too


def test_what_json_lacks():
    value = {"nan": math.nan, "inf": -math.inf, "count": Counter({3: 2}), "$odd": 1, 0: {1: (2.5, [None])}}
    back = round_trip(value)
    assert math.isnan(back.pop("nan")) and value.pop("nan") != 0
    assert back == value and type(back["count"]) is Counter


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool])
def test_tensors_come_back_with_type_and_bits(dtype):
    value = {"a": [torch.arange(6).to(dtype).reshape(2, 3)], 4: torch.tensor(3).to(dtype), "empty": torch.empty(0, 3)}
    back = round_trip(value)
    assert torch.equal(back["a"][0], value["a"][0]) and back["a"][0].dtype == dtype
    assert torch.equal(back[4], value[4]) and back["empty"].shape == (0, 3)


def test_memory_formats_come_back():
    image = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    volume = torch.randn(2, 3, 4, 5, 6).contiguous(memory_format=torch.channels_last_3d)
    turned = torch.randn(3, 4).t()
    narrow = torch.randn(6, 1, 5, 5).to(memory_format=torch.channels_last)
    assert narrow.is_contiguous() and narrow.stride() == (25, 1, 5, 1)
    for tensor in (image, volume, turned, narrow):
        back = round_trip(tensor)
        assert torch.equal(back, tensor) and back.stride() == tensor.stride()


def test_views_with_gaps_or_overlaps_come_back_whole():
    for tensor in (torch.randn(6, 4)[::2, 1:3], torch.randn(3, 1).expand(3, 5), torch.randn(1, 4, 1, 1)):
        assert torch.equal(round_trip(tensor), tensor)
    assert dense_strides(torch.randn(6, 4)[::2]) is None


def test_tensors_that_share_memory_are_stored_apart():
    whole = torch.arange(4.0)
    tensors = {}
    pack([whole, whole, whole[1:]], tensors, "s")
    assert len({t.data_ptr() for t in tensors.values()}) == 3


def test_keys_with_dots_do_not_collide():
    value = {"a.b": torch.tensor(1), "a": {"b": torch.tensor(2)}}
    back = round_trip(value)
    assert back["a.b"] == 1 and back["a"]["b"] == 2


def test_what_needs_pickle_is_refused_by_name():
    with pytest.raises(CheckpointError, match=r"state\.deep\.1 is a object") as error:
        pack({"deep": [1, object()]}, {}, "state")
    assert "pickle" in str(error.value)


def test_a_missing_tensor_is_named():
    with pytest.raises(CheckpointError, match="lacks the tensor x"):
        unpack({"$tensor": "x"}, {})


def test_with_strides_keeps_values():
    tensor = torch.randn(2, 3, 4, 4)
    assert torch.equal(with_strides(tensor, [48, 1, 12, 3]), tensor)
