"""Values on their way between processes: what comes out is what went in, and what is damaged is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from convoy.engines.ray.message import DTYPES, finite, pack, unpack
from convoy.errors import DataError, RunError


def same(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, Tensor):
        assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
        assert torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    else:
        assert a == b or a != a


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Of every type, in every layout that a stage may hand on."""
    dtype = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
    shape = draw(st.lists(st.integers(0, 3), max_size=4))
    made = (torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 9)))) * 9).to(dtype)
    layout = draw(st.sampled_from(["rows", "last", "transposed", "gaps", "expanded", "offset"]))
    if layout == "last" and len(shape) == 4:
        return made.to(memory_format=torch.channels_last)
    if layout == "transposed" and len(shape) > 1:
        return made.transpose(0, -1)
    if layout == "gaps" and shape:
        return made[..., ::2]
    if layout == "expanded":
        return made.unsqueeze(0).expand(3, *shape)
    return made[1:] if layout == "offset" and shape and shape[0] else made


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
nested = st.recursive(
    plain | tensors(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.sampled_from(["$tensor", "$tuple"]), inner, max_size=3)
        | st.dictionaries(st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(nested)
def test_what_is_unpacked_is_what_was_packed(value: Any) -> None:
    message = pack(value)
    assert message.array.dtype == np.uint8 and message.array.ndim == 1
    message.array.flags.writeable = False  # as arrays come out of the object store
    same(unpack(message.header, message.array), value)


def test_a_tensor_that_came_has_memory_of_its_own() -> None:
    sent = torch.arange(4.0)
    message = pack([sent])
    (came,) = unpack(message.header, message.array)
    came.add_(1)
    assert sent.tolist() == [0, 1, 2, 3]


def test_a_single_dense_tensor_is_not_copied_to_be_sent() -> None:
    images = torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)
    assert pack({"x": images}).array.ctypes.data == images.data_ptr()


def test_gradients_and_conjugates_stay_behind() -> None:
    assert not unpack(*_parts(torch.ones(2, requires_grad=True))).requires_grad
    assert torch.equal(unpack(*_parts(torch.tensor([1j]).conj())), torch.tensor([-1j]))


def _parts(value: Any) -> tuple[Any, Any]:
    message = pack(value)
    return message.header, message.array


@pytest.mark.parametrize("value", [object(), {"a": {1, 2}}, [len], np.float32(1)])
def test_what_is_not_plain_is_refused(value: Any) -> None:
    with pytest.raises(DataError, match=r"^the target holds a \w+, which does not travel"):
        pack(value, "the target")


def test_a_sparse_tensor_is_refused() -> None:
    with pytest.raises(DataError, match="cannot be sent"):
        pack(torch.eye(2).to_sparse())


def entry(**changed: Any) -> Any:
    return list({"dtype": "float32", "shape": [2, 3], "strides": [3, 1], "start": 0, **changed}.values())


@pytest.mark.parametrize(
    ("header", "size"),
    [
        (None, 24),
        ({"tensors": []}, 0),
        ({"value": None, "tensors": []}, 1),
        ({"value": {"$tensor": 1}, "tensors": [entry()]}, 24),
        ({"value": {"$tensor": True}, "tensors": [entry()]}, 24),
        ({"value": b"", "tensors": []}, 0),
        *(
            ({"value": {"$tensor": 0}, "tensors": [e]}, size)
            for e, size in [
                (entry(), 23),
                (entry(), 25),
                (entry(dtype="object"), 24),
                (entry(shape=[2, -3]), 24),
                (entry(shape=[2, 3.0]), 24),
                (entry(shape=[2]), 24),
                (entry(strides=[1, 1]), 24),
                (entry(strides=[2**40, 1]), 24),
                (entry(start=4), 28),
                (entry(start=64), 88),
                (entry(shape=[2**40, 3]), 24),
                (["float32", [1]], 4),
                (None, 0),
            ]
        ),
    ],
)
def test_a_damaged_message_is_refused(header: Any, size: int) -> None:
    with pytest.raises(RunError, match=r"^x1>2@5 was damaged on its way: "):
        unpack(header, np.zeros(size, np.uint8), "x1>2@5")


@pytest.mark.parametrize("array", [np.zeros(6, np.float32), np.zeros((6, 4), np.uint8), b"0" * 24])
def test_only_a_flat_array_of_bytes_is_taken(array: Any) -> None:
    with pytest.raises(RunError, match="no flat array of bytes"):
        unpack({"value": {"$tensor": 0}, "tensors": [entry()]}, array)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.complex64])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_number_that_is_not_finite_is_found(dtype: torch.dtype, bad: float) -> None:
    tensor = torch.ones(3, 5, dtype=dtype)
    assert finite({"a": [tensor, None, 1.0], "b": (torch.tensor([1, 2]), torch.empty(0))})
    tensor[1, 2] = bad
    assert not finite({"a": [tensor]}) and not finite((tensor[:, 1:3],)) and finite(tensor[0])


def test_the_largest_numbers_are_finite() -> None:
    assert finite(torch.full((100,), torch.finfo(torch.float32).max))
