"""The compiled engine gives the clocks of the plain one, and both keep the timing that a checker of its own knows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from convoy.hardware import memory
from convoy.hardware.memory.checker import Checker

COMMON, WIDE = memory.load_memory("common"), memory.load_memory("wide")


@st.composite
def memories(draw):
    base = draw(st.sampled_from([COMMON, WIDE]))
    high = draw(st.integers(2, 32))
    return replace(
        base,
        bank_groups=draw(st.sampled_from([1, 2, 4])),
        tREFI=draw(st.sampled_from([0, 500, 3900])),
        tFAW=draw(st.integers(4, 60)),
        tRRD_L=draw(st.integers(4, 9)),
        tWTR_L=draw(st.integers(6, 14)),
        read_queue=draw(st.integers(1, 32)),
        write_high=high,
        write_low=draw(st.integers(0, high - 1)),
    )


@st.composite
def streams(draw, most):
    n = draw(st.integers(1, most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    span = draw(st.sampled_from([2**10, 2**13, 2**17, 2**30]))
    address = rng.integers(0, span, n)
    if draw(st.booleans()):
        address = np.sort(address)
    writes = rng.random(n) < draw(st.sampled_from([0.0, 0.2, 0.7, 1.0]))
    arrival = np.sort(rng.integers(0, 1 + int(n * draw(st.sampled_from([0, 1, 3, 20]))), n))
    return memory.Requests(address, writes, rng.integers(0, 3, n), arrival)


@settings(max_examples=60)
@given(described=memories(), requests=streams(160), order=st.sampled_from(["col", "bg"]), refresh=st.booleans())
def test_clock_for_clock(described, requests, order, refresh):
    fast, plain = (
        memory.run(requests, described, address_map=order, refresh=refresh, engine=engine, commands=True)
        for engine in ("compiled", "reference")
    )
    assert fast.commands.tolist() == plain.commands.tolist()
    for name in ("accepted", "issued", "completed", "outcome"):
        assert getattr(fast, name).tolist() == getattr(plain, name).tolist(), name
    assert (fast.cycles, fast.refreshes) == (plain.cycles, plain.refreshes)


@settings(max_examples=40)
@given(described=memories(), requests=streams(2500), order=st.sampled_from(["col", "bg"]))
def test_no_command_breaks_a_timing_rule(described, requests, order):
    done = memory.run(requests, described, address_map=order, commands=True)
    assert not Checker(described).check(done.commands.tolist())
    assert (done.issued >= done.accepted).all() and (done.accepted >= 0).all()
    columns = done.commands[np.isin(done.commands[:, 1], [memory.Command.READ, memory.Command.WRITE])]
    assert len(columns) == done.issued.size
