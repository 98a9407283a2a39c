"""The layout as a pure function of work: what it must respect, and the drawing that it should make."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.errors import InternalError
from convoy.schedule.action import Action
from convoy.schedule.recurring import Recurring
from convoy.schedule.schedule import DRIVER, Schedule
from convoy.schedule.walk import topological, walk
from convoy.strategies.concurrent.schedule import CONV, NONCONV, Work, arrange, bounds, one_after_the_other

HANDOVER = 0.01


def work(text, sort=CONV, seconds=1.0, lanes=None, phase="forward"):
    lanes = (sort,) if lanes is None else lanes
    return Work(Action.parse(text), sort, phase, dict.fromkeys(lanes, seconds))


ENTER = Work(Action.parse("E 0 0.0 : => y0@0"), NONCONV, "forward")


def two_layers(lanes=None):
    """Forward of two CONV layers in two groups, each with its non-CONV task, then back through the second of them; the
    CONV tasks take 2 each, the others 1."""

    def conv(text):
        return work(text, CONV, 2.0, lanes)

    def non(text):
        return work(text, NONCONV, 1.0, lanes)

    made = [ENTER]
    for layer in (1, 2):
        made += [conv(f"F c{layer} 0.{g} : Wc{layer}@0 y{layer - 1}@0 => c{layer}.{g}@0") for g in (0, 1)]
        made += [non(f"F n{layer} 0.{g} : c{layer}.{g}@0 => n{layer}.{g}@0") for g in (0, 1)]
        made.append(work(f"J n{layer} 0.0 : n{layer}.0@0 n{layer}.1@0 => y{layer}@0", NONCONV, 0.0, lanes))
    made.append(non("L loss 0.0 : y2@0 => d2@0"))
    made += [conv(f"I c2 0.{g} : Wc2@0 d2@0 => e.{g}@0") for g in (0, 1)]
    made += [conv(f"G c2 0.{g} : d2@0 => w2.{g}@0") for g in (0, 1)]
    made += [non(f"I n1 0.{g} : e.{g}@0 => f.{g}@0") for g in (0, 1)]
    made += [conv(f"G c1 0.{g} : f.{g}@0 => w1.{g}@0") for g in (0, 1)]
    made.append(non("U c2 0.0 : Wc2@0 w2.0@0 w2.1@0 => Wc2@1"))
    made.append(non("U c1 0.0 : Wc1@0 w1.0@0 w1.1@0 => Wc1@1"))
    return made


def drawn(layout):
    return {
        lane: [
            (f"{a.kind}{a.subject}/{a.part}", start)
            for (on, a), start in zip(layout.entries, layout.starts, strict=True)
            if on == lane
        ]
        for lane in (CONV, NONCONV)
    }


def test_tasks_of_the_other_kind_run_inside_conv_tasks():
    """Forward: n1/0 runs inside c1/1. Backward: n1/0 inside I c2/1, n1/1 inside the weight gradient, for which nobody
    waits; the update of c2 inside the weight gradient of c1."""
    layout = arrange(two_layers(), handover=0.0)
    assert drawn(layout) == {
        CONV: [
            ("Fc1/0", 0), ("Fc1/1", 2), ("Fc2/0", 5), ("Fc2/1", 7),
            ("Ic2/0", 11), ("Ic2/1", 13), ("Gc2/0", 15), ("Gc2/1", 17), ("Gc1/0", 19), ("Gc1/1", 21),
        ],
        NONCONV: [
            ("Fn1/0", 2), ("Fn1/1", 4), ("Jn1/0", 5), ("Fn2/0", 7), ("Fn2/1", 9), ("Jn2/0", 10), ("Lloss/0", 10),
            ("In1/0", 13), ("In1/1", 15), ("Uc2/0", 19), ("Uc1/0", 23),
        ],
    }  # fmt: skip
    assert layout.finish == 24 and one_after_the_other(two_layers()).finish == 29
    assert layout.busy() == {CONV: 20, NONCONV: 9}


def test_bounds():
    found = bounds(two_layers())
    assert (found.serial, found.balance, found.shared) == (29, 20, 14.5)
    assert found.chain == 2 + 1 + 2 + 1 + 1 + 2 + 1 + 2 + 1, "c1, n1, c2, n2, loss, I c2, n1, G c1, U c1"


def test_an_idle_engine_takes_tasks_of_the_other_kind_where_it_may():
    layout = arrange(two_layers((CONV, NONCONV)), handover=0.0)
    assert layout.finish < 24
    assert layout.finish >= max(bounds(two_layers()).shared, bounds(two_layers()).chain)
    moved = [(lane, a.label) for lane, a in layout.entries if (a.subject[0] == "c") == (lane == NONCONV)]
    assert moved


def test_an_engine_with_other_seconds_gets_other_work():
    """A modelled machine: what the CONV lane would do slowly waits for the other one."""
    made = [ENTER, Work(Action.parse("F a 0.0 : y0@0 => a@0"), CONV, "forward", {NONCONV: 3.0})]
    made.append(Work(Action.parse("F b 0.0 : y0@0 => b@0"), CONV, "forward", {CONV: 9.0, NONCONV: 1.0}))
    layout = arrange(made, handover=0.0)
    assert [lane for lane, _ in layout.entries] == [DRIVER, NONCONV, NONCONV] and layout.finish == 4.0


@st.composite
def graphs(draw):
    """Work in program order: values from earlier actions, states that are read and moved."""
    states = {"Wa": 0, "Wb": 0}
    values, made = ["y0"], [ENTER]
    for number in range(draw(st.integers(1, 14))):
        reads = draw(st.lists(st.sampled_from(values), max_size=3, unique=True))
        held = draw(st.lists(st.sampled_from(sorted(states)), max_size=2, unique=True))
        moved = [s for s in held if draw(st.booleans())]
        refs = " ".join([*(f"{v}@0" for v in reads), *(f"{s}@{states[s]}" for s in held)])
        for s in moved:
            states[s] += 1
        out = " ".join([f"v{number}@0", *(f"{s}@{states[s]}" for s in moved)])
        sort = draw(st.sampled_from([CONV, NONCONV]))
        lanes = draw(st.sampled_from([(sort,), (CONV, NONCONV)]))
        seconds = draw(st.sampled_from([0.0, 0.5, 1.0, 3.0]))
        made.append(work(f"F n{number} 0.0 : {refs} => {out}", sort, seconds, lanes))
        values.append(f"v{number}")
    return made


@given(graphs(), st.sampled_from([0.0, HANDOVER]))
def test_every_layout_can_be_carried_out_and_keeps_the_bounds(made, handover):
    layout = arrange(made, handover)
    entries = list(layout.entries)
    assert sorted(str(a) for _, a in entries) == sorted(str(w.action) for w in made)
    by_action = {w.action: w for w in made}
    for lane, action in entries:
        assert lane in by_action[action].seconds or lane == DRIVER
    Recurring(entries)  # a valid program order: versions rise, values are written before they are read
    assert len(topological(Schedule(entries))) == len(entries), "no lane waits for ever"
    spans = {}
    for (lane, _), start, end in zip(entries, layout.starts, layout.ends, strict=True):
        assert start >= spans.get(lane, 0.0), "a lane does one thing at a time"
        spans[lane] = end
    found = bounds(made)
    crossings = handover * len(made)
    assert max(found.chain, found.shared) - 1e-9 <= layout.finish <= found.serial + crossings + 1e-9
    if all(len(w.seconds) < 2 for w in made):
        assert layout.finish >= found.balance - 1e-9


@given(graphs())
def test_the_walker_expects_the_same_times(made):
    layout = arrange(made, 0.0)
    seconds = {w.action: w for w in made}
    lane_of = {action: lane for lane, action in layout.entries}
    expected = walk(Schedule(list(layout.entries)), lambda a: seconds[a].seconds.get(lane_of[a], 0.0))
    assert expected.finish <= layout.finish + 1e-9


def test_the_same_work_gives_the_same_layout():
    assert arrange(two_layers()) == arrange(two_layers())


def test_work_that_no_lane_can_do_is_a_mistake():
    made = [ENTER, work("F a 0.0 : y0@0 b@0 => a@0")]
    with pytest.raises(InternalError, match="nothing before it writes"):
        arrange(made)
