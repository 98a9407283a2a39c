import math
import tomllib
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.errors import OptionError
from convoy.training.toml import dump_toml

text = st.text(st.characters(exclude_categories=["Cs"]))
scalars = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | text
values = st.recursive(scalars, lambda v: st.lists(v) | st.dictionaries(text, v), max_leaves=15)


@given(st.dictionaries(text, values))
def test_what_is_written_reads_back(table):
    assert tomllib.loads(dump_toml(table)) == table


def test_it_reads_well():
    table = {
        "model": "resnet20",
        "epochs": 12,
        "clip": None,
        "strategy": {"name": "pipelined", "ppv": (7, 13), "inner": {"lr": 0.1, "on": True}},
        "data": {},
        "odd key": {"a.b": Path("x/y"), "d": date(2026, 1, 2)},
    }
    assert dump_toml(table) == (
        'model = "resnet20"\nepochs = 12\n\n[strategy]\nname = "pipelined"\nppv = [7, 13]\n\n'
        '[strategy.inner]\nlr = 0.1\non = true\n\n[data]\n\n["odd key"]\n"a.b" = "x/y"\nd = 2026-01-02\n'
    )


def test_numbers_that_are_not_finite():
    back = tomllib.loads(dump_toml({"a": math.inf, "b": -math.inf, "c": math.nan}))
    assert back["a"] == math.inf and back["b"] == -math.inf and math.isnan(back["c"])


def test_what_toml_cannot_hold_is_named():
    with pytest.raises(OptionError, match=r"a\.b has the value <object"):
        dump_toml({"a": {"b": object()}})
