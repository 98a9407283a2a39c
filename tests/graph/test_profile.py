from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from convoy.graph.graph import Cost, Graph, Node
from convoy.graph.profile import Profile, first_saved_bytes, relative_spread, saved_matrix

SIZES = [5, 7, 11, 13]
tables = st.lists(
    st.lists(st.integers(0, 3), max_size=3).map(lambda ids: tuple((i, SIZES[i]) for i in ids)), max_size=6
).map(tuple)


@settings(max_examples=60, deadline=None)
@given(tables)
def test_saved_matrix_counts_each_storage_of_a_stretch_once(table: Any) -> None:
    found = saved_matrix(table)
    assert found.shape == (len(table) + 1, len(table) + 1)
    for start in range(len(table) + 1):
        for stop in range(start, len(table) + 1):
            assert found[start, stop] == sum(dict(e for entries in table[start:stop] for e in entries).values())


@settings(max_examples=60, deadline=None)
@given(tables)
def test_first_saved_bytes_add_up_to_the_whole(table: Any) -> None:
    first = first_saved_bytes(table)
    assert sum(first) == saved_matrix(table)[0, len(table)]
    for stop in range(len(table) + 1):
        assert sum(first[:stop]) == saved_matrix(table)[0, stop]


def test_relative_spread() -> None:
    assert relative_spread([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 3)
    assert relative_spread([4.0]) == relative_spread([]) == relative_spread([0.0, 0.0]) == 0.0


def test_sums_over_stretches() -> None:
    program = torch.fx.symbolic_trace(torch.nn.Identity())
    costs = [None, Cost(1.0, 2.0, 4.0), Cost(8.0, 16.0), None]
    nodes = tuple(Node(str(i), "other", cost=cost) for i, cost in enumerate(costs))
    saved = ((), ((0, 100), (1, 10)), ((1, 10),), ())
    profile = Profile(Graph(nodes, program, "net", 1), saved, "measured", step_seconds=(30.0, 31.0))
    assert profile.costs == (0.0, 7.0, 24.0, 0.0)
    assert profile.seconds == 31.0
    assert (profile.forward_seconds(0, 2), profile.backward_seconds(0, 2)) == (1.0, 6.0)
    assert (profile.forward_seconds(1, 4), profile.backward_seconds(1, 4)) == (9.0, 22.0)
    assert (profile.saved_bytes(0, 4), profile.saved_bytes(2, 4), profile.saved_bytes(3, 4)) == (110, 10, 0)
    assert profile.passes == 2
