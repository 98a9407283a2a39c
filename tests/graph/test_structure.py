"""Nested values come apart and together again as what they were."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from convoy.errors import DataError
from convoy.graph.signature import Signature
from convoy.graph.structure import Structure, flatten

Pair = namedtuple("Pair", ["left", "right"])


@dataclass
class Result:
    logits: Any
    extra: Any = None
    count: int = field(default=0, init=False)


@dataclass(frozen=True)
class Frozen:
    value: Any


class Plain:
    def __init__(self, value: Any) -> None:
        self.value, self.note = value, "kept"


def is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


T = torch.zeros(1)


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (T, 1),
        ((T, [T, {"a": T}]), 3),
        (Pair(T, 3), 1),
        ({"x": T, "y": None, "z": "text"}, 1),
        (OrderedDict(b=T, a=T), 2),
        (defaultdict(list, a=[T]), 1),
        (Result(T, {"deep": (T,)}), 2),
        (Frozen(T), 1),
        ([], 0),
        ((), 0),
        (None, 0),
        (torch.zeros(3).max(0), 2),
        (torch.Size([2, 3]), 0),
    ],
)
def test_round_trip(value: Any, count: int) -> None:
    leaves, structure = flatten(value, is_tensor)
    assert len(leaves) == count
    fresh = [torch.full((1,), float(i)) for i in range(count)]
    built = structure.rebuild(fresh)
    assert type(built) is type(value)
    assert [id(leaf) for leaf in flatten(built, is_tensor)[0]] == [id(leaf) for leaf in fresh]
    assert flatten(built, is_tensor)[1].same_form(structure)


def test_an_object_with_tensors_as_attributes() -> None:
    leaves, structure = flatten(Plain(T), is_tensor)
    built = structure.rebuild([torch.ones(1)])
    assert len(leaves) == 1 and type(built) is Plain and built.value == 1 and built.note == "kept"


def test_fields_that_the_constructor_does_not_take() -> None:
    value = Result(T)
    value.count = 7
    built = flatten(value, is_tensor)[1].rebuild([T])
    assert built.count == 7


def test_paths_lead_to_the_leaves() -> None:
    value = {"a": (T, Result(T))}
    leaves, structure = flatten(value, is_tensor)
    assert list(structure.paths()) == [
        (("item", "a"), ("item", 0)),
        (("item", "a"), ("item", 1), ("attribute", "logits")),
    ]
    assert len(leaves) == 2


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"a": T}, {"a": torch.ones(5)}, True),
        ({"a": T}, {"b": T}, False),
        ((T,), [T], False),
        ((T, 1), (T, 2), False),
        ((T, None), (T, T), False),
        ((T, torch.Size([2])), (T, torch.Size([3])), False),
    ],
)
def test_same_form(one: Any, other: Any, same: bool) -> None:
    assert flatten(one, is_tensor)[1].same_form(flatten(other, is_tensor)[1]) is same


def test_a_batch_of_another_form_is_refused_with_both_forms() -> None:
    form: Structure = flatten(((), {"x": T, "flag": True}), is_tensor)[1]
    takes = Signature(form, ("x",))
    assert takes.bind((), {"x": T, "flag": True}) == {"x": T}
    with pytest.raises(DataError, match=r"\(\(\), {x: tensor, flag: False}\), not \(\(\), {x: tensor, flag: True}\)"):
        takes.bind((), {"x": T, "flag": False})
