"""Whole steps: what must hold whatever the policy, windows against whole runs, and our schedule's rearranging."""

from __future__ import annotations

import json

import pytest

from convoy.errors import OptionError
from convoy.events.chrome import ChromeTrace
from convoy.hardware.description import load_hardware
from convoy.hardware.step import TURNS, simulate, tasks_of
from convoy.hardware.step.improve import bound, loads, rearranged, step_bound
from convoy.hardware.step.parts import build as parts_of
from convoy.hardware.step.parts import equal, group_shares
from convoy.hardware.step.turns import Turns
from convoy.hardware.step.window import run, run_whole
from convoy.models import build

HARDWARE = load_hardware("v100-pim4")


@pytest.fixture(scope="module")
def step():
    return tasks_of(build("resnet18", classes=10, image_size=64), 4, (3, 64, 64))


@pytest.fixture(scope="module")
def simulated(step):
    return {turns: simulate(step, HARDWARE, turns=turns) for turns in TURNS}


def test_no_policy_is_faster_than_the_bound(simulated):
    for found in simulated.values():
        assert found.seconds >= found.bound_seconds
        assert found.seconds == pytest.approx(sum(r.clocks for r in found.rows) * 1.14e-9)
        assert found.rows and all(row.clocks >= row.bound_clocks - 1e-6 for row in found.rows)


def test_serial_is_serial_and_one_group_is_serial_too(step, simulated):
    assert simulated["serial"].seconds == simulated["serial"].serial_seconds
    for turns in ("idle", "alternate", "queue"):
        assert simulate(step, HARDWARE, turns=turns, groups=1).seconds == simulated["serial"].seconds


def test_planned_is_never_slower_than_serial(simulated):
    assert simulated["planned"].seconds <= simulated["serial"].seconds
    for found in simulated.values():
        assert found.seconds_where_it_helps <= min(found.seconds, found.serial_seconds) * (1 + 1e-9)
    assert 0 < simulated["planned"].way_to_bound <= 1


def test_rearranging_loses_no_work(step):
    for slack in (0.0, 0.5):
        moved = rearranged(step, HARDWARE, slack)
        for phase in ("forward", "input_grad", "weight_grad"):
            before, after = (
                sum(t.flops for s in one.segments for t in s.host if t.phase == phase) for one in (step, moved)
            )
            assert after == pytest.approx(before, rel=1e-6)
        assert sum(len(s.units) for s in moved.segments) == sum(len(s.units) for s in step.segments)
        units = [t for s in moved.segments for t in s.units]
        assert units == [t for s in step.segments for t in s.units]
        first = {}
        for place, segment in enumerate(moved.segments):
            for task in segment.host:
                first.setdefault((task.name, task.phase), place)
        for name, phase in first:  # a weight gradient comes no earlier than the same layer's input gradient
            if phase == "weight_grad" and (name, "input_grad") in first:
                assert first[name, phase] >= first[name, "input_grad"]


def test_windows_against_whole_runs():
    """Three layers of ResNet-50 at batch 128, of 100,000 to 800,000 requests, within 2 %."""
    whole = tasks_of(build("resnet50", classes=1000, image_size=224), 128)
    wanted = {"layer1.0.conv3": "forward", "layer2.0.conv1": "forward", "layer1.1.conv1": "input_grad"}
    chosen = [s for s in whole.segments if wanted.get(s.name) == s.phase]
    assert len(chosen) == 3
    for segment in chosen:
        for serial, turns in ((True, Turns("serial")), (False, Turns("planned")), (False, Turns("queue", 16, 774))):
            parts = parts_of(segment, HARDWARE, equal(4), serial=serial)
            estimate = run(parts, HARDWARE, turns, whole=0)
            assert estimate.share < 0.5
            exact = run_whole(parts, HARDWARE, turns)
            assert estimate.clocks == pytest.approx(exact.clocks, rel=0.02), (segment.name, turns)


def test_bytes_that_groups_cost(step):
    """Every group reads the inputs again, unless they fit on the chip."""
    big = tasks_of(build("resnet18", classes=10, image_size=224), 16)
    segment = big.segments[1]
    once, again = (parts_of(segment, HARDWARE, equal(4), serial=False, reread=reread) for reread in (False, True))
    inputs = segment.host[0].reads * 2 / 64 / 32
    assert again.requests - once.requests == pytest.approx(3 * inputs, rel=0.01)
    small = parts_of(step.segments[-2], HARDWARE, equal(4), serial=False)
    assert small.requests == pytest.approx(
        parts_of(step.segments[-2], HARDWARE, equal(1), serial=False).requests, abs=16
    )


def test_groups_are_whole_blocks_of_lanes():
    assert group_shares(64, equal(4)) == (0.25,) * 4
    assert group_shares(64, equal(8)) == (0.25,) * 4
    assert group_shares(64, (2, 1, 1)) == (0.5, 0.25, 0.25)
    assert group_shares(10, equal(4)) == (1.0,)
    assert sum(group_shares(1000, equal(7))) == pytest.approx(1)


def test_bounds_add_up(step):
    assert step_bound(step, HARDWARE) <= sum(bound([s], HARDWARE) for s in step.segments)
    for segment in step.segments:
        compute, memory, units = loads(segment, HARDWARE)
        assert bound([segment], HARDWARE) == max(compute, memory + units)


def test_the_result_can_be_read_written_and_drawn(simulated, tmp_path):
    for found in simulated.values():
        values = json.loads(json.dumps(found.to_dict()))
        assert values["speedup_over_serial"] == pytest.approx(found.serial_seconds / found.seconds)
        assert len(values["layers"]) == len(found.rows)
        assert "layer1.0.conv1" in found.table() and "layer1.0.conv1" not in found.table(layers=False)
        ends = {"host": 0.0, "units": 0.0}
        for event in found.events():
            if event.kind == "action":
                assert event.start >= ends[event.lane] - 1e-12 and event.end > event.start
                ends[event.lane] = event.end
        assert max(ends.values()) == pytest.approx(found.seconds, rel=0.01)
    trace = ChromeTrace(tmp_path / "trace.json.gz")
    for event in simulated["planned"].events():
        trace(event)
    trace.close()
    assert trace.error is None and trace.path.stat().st_size > 500


def test_energy_goes_where_the_work_is(step, simulated):
    serial = simulated["serial"]
    assert 0 < serial.joules == serial.serial_joules < serial.host_alone_joules
    larger = tasks_of(build("resnet18", classes=10, image_size=64), 64, (3, 64, 64))
    four, two = (simulate(larger, load_hardware(name), turns="serial") for name in ("v100-pim4", "v100-pim2"))
    assert two.seconds < four.seconds and two.joules < four.joules


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"turns": "fair"}, "no turn policy 'fair'"),
        ({"groups": 0}, "groups is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_what_makes_no_sense_is_refused(options, words):
    with pytest.raises(OptionError, match=words):
        simulate(build("lenet5"), image=(3, 32, 32), **options)
