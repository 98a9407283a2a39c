"""Bandwidth against closed forms and against two published simulators at the same settings (docs/simulate.md)."""

from __future__ import annotations

import pytest

from convoy.hardware import memory
from convoy.hardware.memory.patterns import Pattern, pattern

COUNT = 60_000

# pattern, map, refresh, the two simulators' percent of peak, tolerance relative to the nearer one
STANDARD = [
    ("sequential read", "col", True, (89.8, 90.2), 0.02),
    ("sequential read", "bg", True, (89.6, 89.9), 0.02),
    ("sequential read", "col", False, (100.0, 100.0), 0.02),
    ("sequential read", "bg", False, (100.0, 99.7), 0.02),
    ("sequential write", "col", True, (89.8, 89.7), 0.02),
    ("sequential write", "bg", True, (89.7, 88.2), 0.02),
    ("sequential write", "col", False, (100.0, 100.0), 0.02),
    ("sequential write", "bg", False, (100.0, 98.2), 0.02),
    ("random read", "col", True, (44.5, 44.7), 0.03),
    ("random read", "col", False, (49.7, 49.6), 0.03),
    ("random write", "col", True, (44.5, 43.6), 0.03),
    ("random write", "col", False, (49.7, 48.4), 0.03),
    ("conflicts", "col", True, (3.78, 3.79), 0.02),
    ("conflicts", "col", False, (4.17, 4.17), 0.02),
    ("hits", "col", True, (45.1, 45.1), 0.02),
    ("hits", "col", False, (50.0, 50.0), 0.02),
    ("hits in four groups", "col", True, (90.2, 90.2), 0.02),
    ("hits in four groups", "col", False, (100.0, 100.0), 0.02),
]
MIXED = [("col", True, 75.2, 77.3), ("bg", True, 74.7, 83.6), ("col", False, 83.5, 86.0), ("bg", False, 83.1, 91.9)]
WIDE = [
    ("sequential read", True, 91.9, 0.02),
    ("sequential read", False, 100.0, 0.02),
    ("random read", True, 24.6, 0.03),
    ("random read", False, 26.7, 0.03),
    ("conflicts", True, 3.87, 0.02),
    ("conflicts", False, 4.17, 0.02),
]


def percent(name: Pattern, preset: str, order: str, refresh: bool) -> float:
    described = memory.load_memory(preset)
    requests = pattern(name, described, order, COUNT)
    return memory.run(requests, described, address_map=order, refresh=refresh).percent_of_peak


@pytest.mark.parametrize(("name", "order", "refresh", "figures", "tolerance"), STANDARD)
def test_what_the_standard_decides_is_as_in_other_simulators(name, order, refresh, figures, tolerance):
    found = percent(name, "common", order, refresh)
    assert min(abs(found / figure - 1) for figure in figures) <= tolerance, found


@pytest.mark.parametrize(("order", "refresh", "low", "high"), MIXED)
def test_what_the_scheduler_decides_is_between_them(order, refresh, low, high):
    assert low <= percent("two reads, one write", "common", order, refresh) <= high


@pytest.mark.parametrize(("name", "refresh", "figure", "tolerance"), WIDE)
def test_a_channel_of_another_width(name, refresh, figure, tolerance):
    assert percent(name, "wide", "col", refresh) == pytest.approx(figure, rel=tolerance)


def test_closed_forms_without_refresh():
    """Bytes per clock: burst over tCCD_L for hits in one bank, over tRC for conflicts, four bursts over tFAW or one
    over tRRD for random reads, whichever is slower."""
    for preset in ("common", "wide"):
        m = memory.load_memory(preset)
        peak = m.peak_bytes_per_clock / 100
        assert percent("conflicts", preset, "col", False) * peak == pytest.approx(m.burst_bytes / m.tRC, rel=0.002)
        hits = m.burst_bytes / max(m.tCCD_L, m.burst_clocks)
        assert percent("hits", preset, "col", False) * peak == pytest.approx(hits, rel=0.002)
        random = min(m.burst_bytes / m.tRRD_S, 4 * m.burst_bytes / m.tFAW)
        found = percent("random read", preset, "col", False) * peak
        assert 0.97 * random <= found <= random


def test_refresh_costs_its_share_and_about_one_percent():
    m = memory.load_memory("common")
    for name in ("sequential read", "hits", "conflicts"):
        lost = 1 - percent(name, "common", "col", True) / percent(name, "common", "col", False)
        assert m.tRFC / m.tREFI < lost < m.tRFC / m.tREFI + 0.015
