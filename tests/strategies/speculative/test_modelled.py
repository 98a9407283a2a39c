"""Two modelled engines: limits that follow from the model, whatever the network."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from torch import nn

from convoy.errors import ModelError
from convoy.hardware.engines import TWO_ENGINES
from convoy.models import build
from convoy.strategies.speculative.modelled import VARIANTS, time_per_sample

PLENTY = replace(TWO_ENGINES, bytes_per_second=1e30)  # memory is never in the way


def modelled(engines: Any = PLENTY, units: Any = (), model: str = "plain6") -> Any:
    return time_per_sample(build(model, image_size=16, seed=0), engines, 4, (3, 16, 16), units)


def test_where_only_computing_counts_twice_the_units_take_half_the_time() -> None:
    rows = {(row.units, row.form): row for row in modelled(units=(64, 128)).rows}
    assert len(rows) == 2 * len(VARIANTS)
    for form in VARIANTS:
        few, many = rows[64, form], rows[128, form]
        pairs = zip((few.one, few.exact, *few.speculated), (many.one, many.exact, *many.speculated), strict=True)
        assert all(a == pytest.approx(2 * b) for a, b in pairs)


def test_two_engines_never_halve_more_than_they_leave_out() -> None:
    """Exact training and remembered outcomes do all the work, so two engines save half at most. Leaving samples out
    of the backward pass ends at the forward pass alone, which no form can shorten."""
    found = {row.form: row for row in modelled().rows}
    for row in found.values():
        assert row.one / 2 <= row.exact < row.one
        assert all(b < a * (1 + 1e-9) for a, b in pairwise(row.speculated))
    assert all(t >= row.one / 2 for row in (found["faithful"],) for t in row.speculated)
    zero = found["faithful, zero"]
    assert zero.speculated[0] == pytest.approx(zero.exact)
    assert zero.one / 4 < zero.speculated[-1] < found["faithful"].speculated[-1]


def test_more_units_end_at_the_memory() -> None:
    few, many = modelled(TWO_ENGINES, (256, 10**9)).rows[:: len(VARIANTS)]
    assert few.one > many.one > 0
    assert modelled(TWO_ENGINES, (10**12,)).rows[0].one == pytest.approx(many.one)


def test_a_form_that_a_network_cannot_have_is_said() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 5))
    found = time_per_sample(model, PLENTY, 4, (3, 6, 6))
    rows = {row.form: row for row in found.rows}
    assert rows["faithful"].speculated == () and "no outcome to remember" in rows["faithful"].refused
    assert rows["faithful, zero"].speculated and "faithful is refused: layer 1" in found.table()
    with pytest.raises(ModelError, match="needs a classifier"):
        time_per_sample(nn.Conv2d(3, 4, 3), PLENTY, 4, (3, 6, 6))
