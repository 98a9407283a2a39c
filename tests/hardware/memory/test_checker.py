"""The checker finds what it is there for: one command moved to one clock too early, rule by rule."""

from __future__ import annotations

import pytest

from convoy.hardware import memory
from convoy.hardware.memory.checker import Checker
from convoy.hardware.memory.timing import Command

COMMON = memory.load_memory("common")
ACT, PRE, READ, WRITE, REFRESH, PIM_ACT, PIM_PRE, PIM_READ, PIM_WRITE, ENTER, LEAVE = Command

# what the list shows, commands (clock, command, bank, row), which of them is moved
LISTS = [
    ("tRCDRD", [(0, ACT, 0, 1), (14, READ, 0, 1)]),
    ("tRCDWR", [(0, ACT, 0, 1), (12, WRITE, 0, 1)]),
    ("tRAS", [(0, ACT, 0, 1), (34, PRE, 0, 0)]),
    ("tRP", [(0, ACT, 0, 1), (40, PRE, 0, 0), (54, ACT, 0, 2)]),
    ("tRC", [(0, ACT, 0, 1), (34, PRE, 0, 0), (48, ACT, 0, 2)]),
    ("tRTP", [(0, ACT, 0, 1), (50, READ, 0, 1), (55, PRE, 0, 0)]),
    ("write recovery", [(0, ACT, 0, 1), (50, WRITE, 0, 1), (73, PRE, 0, 0)]),
    ("tRRD", [(0, ACT, 0, 1), (4, ACT, 4, 1)]),
    ("tFAW", [(0, ACT, 0, 1), (4, ACT, 4, 1), (8, ACT, 8, 1), (12, ACT, 12, 1), (30, ACT, 1, 1)]),
    ("tCCD_L", [(0, ACT, 0, 1), (4, ACT, 1, 1), (30, READ, 0, 1), (34, READ, 1, 1)]),
    ("tCCD_S", [(0, ACT, 0, 1), (4, ACT, 4, 1), (30, READ, 0, 1), (32, READ, 4, 1)]),
    ("tRTW", [(0, ACT, 0, 1), (30, READ, 0, 1), (43, WRITE, 0, 1)]),
    ("write to read", [(0, ACT, 0, 1), (30, WRITE, 0, 1), (45, READ, 0, 1)]),
    ("tRFC", [(3900, REFRESH, -1, 0), (4250, ACT, 0, 1)]),
    ("tRP", [(0, ACT, 0, 1), (3900, PRE, -1, 0), (3914, REFRESH, -1, 0)]),
    ("tRCDRD", [(0, ENTER, -1, 0), (1, PIM_ACT, 0, 9), (15, PIM_READ, 0, 9)]),
    ("tCCD_L", [(0, ENTER, -1, 0), (1, PIM_ACT, 1, 9), (20, PIM_WRITE, 1, 9), (24, PIM_WRITE, 1, 9)]),
]


@pytest.mark.parametrize(("name", "commands"), LISTS, ids=[f"{n}-{i}" for i, (n, _) in enumerate(LISTS)])
def test_one_clock_too_early(name, commands):
    memory_here = COMMON if name != "tFAW" else memory.memory_from({"like": "common", "tFAW": 30})
    assert Checker(memory_here).check(commands) == []
    clock, *rest = commands[-1]
    broken = Checker(memory_here).check([*commands[:-1], (clock - 1, *rest)])
    assert any(name in sentence for sentence in broken), broken


@pytest.mark.parametrize(
    ("words", "commands"),
    [
        ("row 2 is asked for", [(0, ACT, 0, 1), (20, READ, 0, 2)]),
        ("row 1 is open", [(0, ACT, 0, 1), (60, ACT, 0, 2)]),
        ("closed already", [(0, PRE, 0, 0)]),
        ("carries another command", [(0, ACT, 0, 1), (0, ACT, 4, 1)]),
        ("none is due", [(100, REFRESH, -1, 0)]),
        ("the units hold the channel", [(0, ENTER, -1, 0), (5, ACT, 0, 1)]),
        ("the host holds the channel", [(0, PIM_ACT, 0, 1)]),
        ("a row is open", [(0, ACT, 0, 1), (90, ENTER, -1, 0)]),
        ("holds the channel already", [(0, LEAVE, -1, 0)]),
    ],
)
def test_what_is_not_a_matter_of_clocks(words, commands):
    assert any(words in sentence for sentence in Checker(COMMON).check(commands))
