"""Kernels and turns against a published simulator of the product (two banks a unit, refresh off; docs/simulate.md)."""

from __future__ import annotations

import pytest

from convoy.hardware import memory
from convoy.hardware.pim import KERNELS, Units, kernel_clocks, round_clocks

COMMON = memory.load_memory("common")
PRODUCT, PUBLISHED = Units(2, "the product"), Units(4, "the publication")
TILE = 2048  # elements


@pytest.mark.parametrize(("name", "per_tile"), [("add", 322), ("mul", 322), ("relu", 204), ("bn", 268)])
@pytest.mark.parametrize("tiles", [1, 2, 16, 64, 1000])
def test_kernels(name, per_tile, tiles):
    found = kernel_clocks(KERNELS[name], tiles * TILE, COMMON, PRODUCT)
    assert found == pytest.approx(409 + per_tile * tiles, rel=0.02)


def test_row_changes_are_what_differs():
    """By the rules: 8 commands per step at tCCD_L; to another row tRTP + tRP + tRCD instead; back to reading write to
    read. The simulator's RELU and BatchNorm come out to the clock, its ADD 2 clocks a round below."""
    pace, to_read, to_write, back = 4, 5 + 14 + 14, 5 + 14 + 12, 5 + 2 + 8
    assert round_clocks(KERNELS["relu"], COMMON, 8) == 14 * pace + to_write + back == 204 // 2
    assert round_clocks(KERNELS["bn"], COMMON, 8) == 22 * pace + to_write + back == 268 // 2
    assert round_clocks(KERNELS["add"], COMMON, 8) == 21 * pace + to_read + to_write + back == 322 // 2 + 2


def test_fixed_costs():
    assert PRODUCT.fixed == 409
    assert PRODUCT.turn == 387
    assert PRODUCT.enter_programmed + PRODUCT.leave == 372


def test_one_unit_per_four_banks_takes_twice_the_rounds():
    for kernel in KERNELS.values():
        two, four = (kernel_clocks(kernel, 64 * TILE, COMMON, units) - 409 for units in (PRODUCT, PUBLISHED))
        assert four == 2 * two
    assert kernel_clocks(KERNELS["add"], TILE, COMMON, PUBLISHED) - 409 == pytest.approx(644, rel=0.02)


def test_internal_bandwidth():
    """Reading alone, units take in 4 times what the channel could carry out (2 times with four banks a unit)."""
    for units, times in ((PRODUCT, 4), (PUBLISHED, 2)):
        per_command = units.per_channel(COMMON) * units.unit_bytes
        assert per_command / COMMON.tCCD_L == times * COMMON.peak_bytes_per_clock
