"""The engine of two sides: what no turn policy may change, whatever the work."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convoy.hardware.description import load_hardware
from convoy.hardware.memory.checker import Checker
from convoy.hardware.pim import KERNELS, Units, round_clocks
from convoy.hardware.pim.rounds import refresh_clocks
from convoy.hardware.step import layout as L
from convoy.hardware.step.parts import Parts, kernel_number
from convoy.hardware.step.trace import expanded
from convoy.hardware.step.turns import Turns
from convoy.hardware.step.window import run_whole

HARDWARE = {name: load_hardware(name) for name in ("v100-pim4", "v100-pim2")}
BURST = 2
POLICIES = st.one_of(
    st.just(Turns("idle")),
    st.just(Turns("planned")),
    st.builds(Turns, st.just("alternate"), turn=st.integers(50, 4000)),
    st.builds(Turns, st.just("queue"), mark=st.integers(1, 32), minimum=st.integers(0, 1600)),
)


def parts_of(host, units, hardware) -> Parts:
    """``host``: (reads, weights, writes, compute); ``units``: (kernel's name, rounds, the host's part it waits for)."""
    memory, registers = hardware.memory, hardware.units.registers
    rows, kernels = [], []
    for name, rounds, needs in units:
        kernel = KERNELS[name]
        wrote = kernel.steps[-1][0] == "W"
        clocks = round_clocks(kernel, memory, registers)
        rows.append([rounds, clocks, 0, needs, kernel_number(kernel), refresh_clocks(memory, wrote=wrote)])
        kernels.append(kernel)
    far = memory.bytes // memory.burst_bytes // 3
    columns = [[r, w, o, c, 100 * i, far + 7 * i, 2 * far + 50 * i] for i, (r, w, o, c) in enumerate(host)]
    return Parts(
        np.array(columns, np.int64).reshape(-1, L.HOST_COLUMNS),
        np.array(rows, np.int64).reshape(-1, L.UNIT_COLUMNS),
        tuple(range(len(host))),
        tuple(range(len(units))),
        (1.0,),
        tuple(kernels),
    )


@st.composite
def work(draw, hardware, most=300):
    groups = draw(st.integers(1, 4))
    host = []
    for _ in range(groups):
        reads = draw(st.integers(1, most))
        host.append((reads, draw(st.integers(0, reads)), draw(st.integers(0, most)), draw(st.integers(0, 20 * most))))
    units, needs = [], -1
    for _ in range(draw(st.integers(0, 5))):
        needs = draw(st.integers(needs, groups - 1))
        units.append((draw(st.sampled_from(sorted(KERNELS))), draw(st.integers(1, 30)), needs))
    return parts_of(host, units, hardware)


def loads(parts: Parts) -> tuple[int, int, int]:
    units = int((parts.units[:, L.ROUNDS] * parts.units[:, L.ROUND_CLOCKS]).sum())
    return int(parts.host[:, L.COMPUTE].sum()), parts.requests * BURST, units


@settings(max_examples=60)
@given(data=st.data(), name=st.sampled_from(sorted(HARDWARE)), policy=POLICIES, refresh=st.booleans())
def test_everything_is_done_once_and_nobody_breaks_a_rule(data, name, policy, refresh):
    hardware = HARDWARE[name]
    parts = data.draw(work(hardware))
    done = run_whole(parts, hardware, policy, refresh=refresh, commands=40_000)
    reads, writes = parts.host[:, L.READS].sum(), parts.host[:, L.WRITES].sum()
    assert (done.figures[L.READS_DONE], done.figures[L.WRITES_DONE]) == (reads, writes)
    assert sum(done.figures[L.HITS : L.CONFLICTS + 1]) == reads + writes
    assert done.figures[L.ROUNDS_DONE] == parts.units[:, L.ROUNDS].sum()
    commands = expanded(done.commands, parts, hardware)
    checker = Checker(hardware.memory, banks_per_unit=hardware.units.banks_per_unit, refresh=refresh)
    assert checker.check(commands) == []
    for end, needs in zip(done.unit_start, parts.units[:, L.NEEDS], strict=True):
        assert needs < 0 or end >= done.host_end[needs]
    compute, memory, units = loads(parts)
    assert done.clocks >= max(compute, memory + units)
    assert done.clocks >= max([*done.host_end, *done.unit_end])


@settings(max_examples=40)
@given(data=st.data(), policy=POLICIES)
def test_without_groups_every_policy_is_serial(data, policy):
    """The units wait for all of the host; the time is that of the host alone, one turn, and their rounds."""
    hardware = HARDWARE["v100-pim4"]
    parts = data.draw(work(hardware))
    units = parts.units.copy()
    units[:, L.NEEDS] = len(parts.host) - 1
    together = replace(parts, units=units)
    host_only = replace(parts, units=units[:0], owners=(), kernels=())
    done = run_whole(together, hardware, policy, refresh=False)
    alone = run_whole(host_only, hardware, policy, refresh=False)
    expected = alone.clocks
    if len(units):
        numbers = units[:, L.KERNEL].tolist()
        programs = sum(a != b for a, b in pairwise(numbers))
        rounds = int((units[:, L.ROUNDS] * units[:, L.ROUND_CLOCKS]).sum())
        u, m = hardware.units, hardware.memory
        ended = int(alone.clocks)
        last = max(ended, 0)
        expected = last + u.enter - m.read_latency + rounds + programs * u.program_net + u.leave - m.tRCDRD
    assert done.clocks == pytest.approx(expected, abs=m_slack(parts))
    serial = run_whole(together, hardware, Turns("serial"), refresh=False)
    assert done.clocks == serial.clocks and done.unit_end == serial.unit_end


def m_slack(parts: Parts) -> int:
    """The switch begins when the last computation is over, or its data: up to one read latency apart."""
    return 16 if len(parts.units) else 0


@settings(max_examples=40)
@given(data=st.data(), name=st.sampled_from(["idle", "planned"]))
def test_serial_overlapped_bound_when_switching_is_free(data, name):
    """ "Free" is what the memory itself needs to close rows and open others, 28 and 51 clocks; per turn so much."""
    base = HARDWARE["v100-pim4"]
    zero = dict.fromkeys(("park_in", "to_all_banks", "program", "to_units", "from_units", "to_single_bank"), 0)
    free = Units(4, "free", **zero, park_out=0, overlap=0, overlap_host=0, program_net=0)
    hardware = replace(base, units=free)
    parts = data.draw(work(hardware))
    units = parts.units.copy()
    units[:, L.NEEDS] = len(parts.host) - 1
    overlapped = run_whole(parts, hardware, Turns(name), refresh=False)
    serial = run_whole(replace(parts, units=units), hardware, Turns("serial"), refresh=False)
    compute, memory, rounds = loads(parts)
    assert overlapped.clocks >= max(compute, memory + rounds)
    # Every turn costs the host its open rows, in three streams, besides the switch.
    assert overlapped.clocks <= serial.clocks + overlapped.figures[L.TURNS] * (79 + 3 * 60) + 60


def test_turns_of_the_reference():
    """4,096 host reads and 64 tiles of ADD in K turns, refresh off, as in a published simulator (docs/simulate.md)."""
    figures = {1: 29225, 2: 29615, 4: 30389, 8: 31934, 16: 35030, 32: 41222, 64: 53591}
    hardware = replace(HARDWARE["v100-pim2"], address_map="bg")
    hardware = replace(hardware, host=replace(hardware.host, staging_bytes=2**24))
    for turns, figure in figures.items():
        clocks = 0.0
        for _ in range(turns):
            parts = parts_of([(4096 // turns, 0, 0, 0)], [("add", 128 // turns, 0)], hardware)
            clocks += run_whole(parts, hardware, Turns("idle"), refresh=False).clocks
        assert clocks == pytest.approx(figure, rel=0.02), turns


def test_a_host_that_computes_longer_than_its_staging_lasts_is_not_held_up_by_planned_turns():
    hardware = HARDWARE["v100-pim4"]
    host = [(4000, 400, 1000, 200_000)] * 4
    units = [("bn_relu", 300, group) for group in range(4)]
    done = run_whole(parts_of(host, units, hardware), hardware, Turns("planned"))
    tail = done.clocks - done.host_end[-1]
    assert done.host_end[-1] == pytest.approx(800_000, rel=0.003)
    assert tail == pytest.approx(300 * 134 * 1.1, rel=0.05)
    alternate = run_whole(parts_of(host, units, hardware), hardware, Turns("alternate", turn=3000))
    assert done.figures[L.TURNS] < alternate.figures[L.TURNS]


def test_banks_split_the_sides_do_not_wait_for_each_other():
    hardware = HARDWARE["v100-pim4"]
    parts = parts_of([(3000, 0, 500, 0)] * 2, [("relu", 50, -1)], hardware)
    apart = run_whole(parts, hardware, Turns("partition"), refresh=False)
    assert apart.figures[L.TURNS] == apart.figures[L.SWITCHING] == 0
    assert apart.figures[L.UNITS_BUSY] == 2 * 50 * round_clocks(KERNELS["relu"], hardware.memory, 8)
    assert apart.clocks < run_whole(parts, hardware, Turns("idle"), refresh=False).clocks
