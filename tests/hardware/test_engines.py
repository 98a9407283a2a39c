"""Engines of multiply-accumulate units: what a task takes, and values that cannot be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from convoy.errors import OptionError
from convoy.hardware.engines import PRESETS, TWO_ENGINES


def test_a_task_takes_the_longer_of_computing_and_moving() -> None:
    engines = replace(TWO_ENGINES, units=100, clock_hz=1e6, utilisation=0.5, bytes_per_second=4e6, element_bytes=4)
    assert engines.seconds(2e6, 0) == pytest.approx(0.02)  # 1e6 multiply-accumulates, 50e6 of them a second
    assert engines.seconds(0, 5e4) == pytest.approx(0.05)
    assert engines.seconds(2e6, 5e4) == pytest.approx(0.05) and engines.seconds(1e7, 5e4) == pytest.approx(0.1)


def test_presets_say_what_is_assumed() -> None:
    assert PRESETS["two-engines"].count == 2
    assert all(name == preset.name and "ssumed" in preset.source for name, preset in PRESETS.items())


@pytest.mark.parametrize(
    ("values", "said"),
    [({"units": 0}, "units = 0"), ({"units": 1.5}, "units = 1.5"), ({"count": True}, "count = True"),
     ({"clock_hz": -1.0}, "clock_hz = -1.0"), ({"clock_hz": "fast"}, "clock_hz = 'fast'"),
     ({"utilisation": 1.2}, "utilisation = 1.2"), ({"bytes_per_second": float("nan")}, "bytes_per_second = nan")],
)  # fmt: skip
def test_values_that_cannot_be(values: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said) as caught:
        replace(TWO_ENGINES, **values)
    assert caught.value.hint
