"""Every kernel as commands: the checker of timing rules accepts them, and they take the time that is charged."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.errors import OptionError
from convoy.hardware import memory
from convoy.hardware.memory.checker import Checker
from convoy.hardware.memory.timing import Command
from convoy.hardware.pim import KERNELS, Units, commands, pooling, round_clocks

POOLING = [
    pooling(kind, way, window, rows, overlapping)
    for kind in ("max", "average")
    for way in ("forward", "backward")
    for window, rows, overlapping in ((9, 3, True), (4, 2, False))
]
ALL = [*KERNELS.values(), *POOLING]
MEMORIES = [
    memory.load_memory("common"),
    memory.memory_from({"like": "common", "name": "slow", "tRP": 20, "tRC": 54, "tWR": 20}),
]


@given(
    sequence=st.lists(st.sampled_from(ALL), min_size=2, max_size=12),
    banks=st.sampled_from([2, 4]),
    described=st.sampled_from(MEMORIES),
    phase=st.integers(0, 3),
)
def test_commands_keep_the_rules_and_the_time(sequence, banks, described, phase):
    units = Units(banks, "test")
    found = commands(sequence, described, units, 1000, phase=phase % banks)
    checker = Checker(described, banks_per_unit=banks)
    checker.units_own = True
    assert checker.check(found) == []
    columns = [clock for clock, code, _, _ in found if code in (Command.PIM_READ, Command.PIM_WRITE)]
    clock, done = 1000, 0
    for kernel in sequence:
        assert columns[done] == clock, kernel.name
        done += units.registers * kernel.column_commands
        clock += round_clocks(kernel, described, units.registers)
    assert done == len(columns)


def test_every_kernel_says_how_it_is_derived_and_reads_before_it_writes():
    for kernel in ALL:
        assert kernel.why and kernel.steps[0][0] == "R"
        assert kernel.sums == 0 or all(kind != "W" for kind, _, _ in kernel.steps)


def test_bytes_moved():
    assert KERNELS["add"].bytes_per_element(2) == 6
    assert KERNELS["bn_statistics"].bytes_per_element(2) == 2
    assert pooling("max", "forward", 9, 3, True).bytes_per_element(2) == 20
    assert pooling("average", "backward", 4, 2, False).bytes_per_element(4) == 20


def test_overlapping_windows_add_to_what_is_there():
    apart, over = (pooling("max", "backward", 9, 3, overlapping) for overlapping in (False, True))
    assert over.column_commands == apart.column_commands + 9


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"banks_per_unit": 1}, "rows are opened ahead"),
        ({"banks_per_unit": 2.0}, "whole number"),
        ({"banks_per_unit": 2, "element_bytes": 3}, "do not hold elements of 3 bytes"),
        ({"banks_per_unit": 2, "overlap": 900}, "overlap by more than they last"),
    ],
)
def test_units_that_cannot_be_are_refused(fields, words):
    with pytest.raises(OptionError, match=words):
        Units(source="test", **fields)


def test_units_that_do_not_fit_the_memory_are_refused():
    with pytest.raises(OptionError, match="8 banks share a unit, but a bank group"):
        Units(8, "test").check(MEMORIES[0])
    with pytest.raises(OptionError, match="no multiple of 5 registers"):
        Units(2, "test", registers=5).check(MEMORIES[0])
