"""Memories as descriptions: presets, the user's own, and what cannot be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.errors import OptionError
from convoy.hardware import memory
from convoy.hardware.memory.address import MAPS, decode, encode
from convoy.hardware.memory.timing import Command

COMMON = memory.load_memory("common")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tRP": 0}, "tRP is 0, but must be at least 1"),
        ({"tRP": 14.5}, "must be a whole number"),
        ({"clock_ns": 0}, "clock_ns is 0"),
        ({"row_bytes": 1000}, "power of two"),
        ({"tRC": 40}, "below tRAS \\+ tRP = 48"),
        ({"tCCD_L": 1}, "tCCD_L = 1 below tCCD_S = 2"),
        ({"tRFC": 3900}, "no time is left"),
        ({"write_high": 40}, "full before the mark"),
        ({"write_high": 8}, "never turn to writing"),
        ({"tRCD": 14}, "unknown key 'tRCD'"),
        ({"banks_per_group": 32}, "may be 64 at most"),
    ],
)
def test_impossible_values_are_refused_with_the_reason(change, words):
    with pytest.raises(OptionError, match=words) as caught:
        memory.memory_from({"like": "common", **change})
    assert caught.value.hint


def test_what_is_missing_is_named():
    with pytest.raises(OptionError, match=r"does not say .*clock_ns"):
        memory.memory_from({"name": "mine", "source": "a data sheet"})


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[memory]\nlike = "wide"\nname = "mine"\ntRFC = 300\n')
    mine = memory.load_memory(str(path))
    assert (mine.name, mine.tRFC, mine.burst_bytes, mine.source) == ("mine", 300, 64, "like wide")
    path.write_text("tRP = = 3")
    with pytest.raises(OptionError, match="no TOML"):
        memory.load_memory(str(path))
    for name in (str(tmp_path / "other.toml"), "hbm9"):
        with pytest.raises(OptionError):
            memory.load_memory(name)


def test_every_rule_is_positive_and_named_once_per_pair():
    rules = COMMON.rules()
    assert len({(r.before, r.after, r.scope, r.window) for r in rules}) == len(rules)
    assert all(r.clocks > 0 for r in rules)
    assert {r.after for r in rules} == set(Command) - set(list(Command)[5:])


@given(address=st.lists(st.integers(0, COMMON.bytes // 32 - 1), min_size=1, max_size=20), order=st.sampled_from(MAPS))
def test_maps_are_one_to_one(address, order):
    bytes_ = np.array(address, np.int64) * 32
    bank, row = decode(COMMON, order, bytes_)
    assert bank.max() < COMMON.banks and row.max() < COMMON.rows
    column = (bytes_ >> (5 if order == "col" else 9)) & 31
    assert encode(COMMON, order, bank, row, column).tolist() == bytes_.tolist()


def test_what_lies_side_by_side():
    bank, row = decode(COMMON, "col", np.arange(0, 4096, 32))
    assert bank.tolist() == [0] * 32 + [4] * 32 + [8] * 32 + [12] * 32 and not row.any()
    bank, _ = decode(COMMON, "bg", np.arange(0, 256, 32))
    assert bank.tolist() == [0, 4, 8, 12, 1, 5, 9, 13]
