"""The plan, the choice of groups, engines, errors; what is cut and what is not."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convoy import oracle
from convoy.errors import OptionError, WorkerFailed
from convoy.schedule.schedule import DRIVER, Schedule
from convoy.schedule.walk import walk
from convoy.strategies.base import Settings
from convoy.strategies.concurrent import Concurrent, build
from convoy.strategies.concurrent import step as steps
from convoy.strategies.concurrent.plan import ConcurrentPlan
from convoy.strategies.concurrent.schedule import CONV, NONCONV
from convoy.strategies.registry import make_strategy


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"groups": 0}, "groups is 0"),
        ({"groups": "two"}, "groups is 'two'.*give 1"),
        ({"groups": 1.5}, "groups is 1.5.*give 1"),
        ({"groups": True}, "groups is True"),
        ({"placement": "split"}, "placement is 'split'.*planned, kind"),
        ({"engine": "ray"}, "engine is 'ray'.*auto, inline, threads, streams"),
    ],
)
def test_values_that_make_no_sense(fields, message):
    with pytest.raises(OptionError, match=f"(?s){message}"):
        Concurrent(**fields)


def test_an_engine_that_does_not_fit_the_device():
    net = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(OptionError, match="'streams' is for CUDA"):
        Concurrent(engine="streams").bind(net, F.cross_entropy, optimizer)
    with pytest.raises(OptionError, match="'threads' is for the CPU"):
        Concurrent(engine="threads").bind(net, F.cross_entropy, optimizer, settings=Settings(device="cuda"))


def test_by_kind_every_task_is_on_the_engine_of_its_kind(make, images, concurrent):
    events = []
    _, step = concurrent(make("vgg"), images([4, 4], torch.float32), placement="kind", sink=events.append)
    kinds = {(e.lane, e.data["kind"], e.data["subject"].split("..")[0]) for e in events if e.kind == "action"}
    conv = {subject for lane, kind, subject in kinds if lane == CONV and kind in "FIG"}
    assert conv == {"_0", "_3", "_7", "_13"}, "three convolutions and the linear layer"
    assert all(kind in "FIG" for lane, kind, _ in kinds if lane == CONV)
    assert {kind for lane, kind, _ in kinds if lane == NONCONV} >= {"F", "I", "G", "J", "L", "U"}
    plan = step.plan()
    assert all(p.sort == p.lane for p in plan.schedule if p.lane != DRIVER)
    assert events[0].kind == "plan" and ConcurrentPlan.from_dict(events[0].data) == plan


def test_the_plan_says_what_it_expects(make, images, concurrent):
    _, step = concurrent(make("vgg"), images([4], torch.float32), placement="kind")
    plan = step.plan()
    assert plan.groups == 2 and len(plan.considered) == 1
    assert 0 < plan.balance_seconds <= plan.predicted_seconds <= plan.serial_seconds * 1.5
    assert plan.chain_seconds <= plan.predicted_seconds
    text = plan.table()
    for words in (
        "2 groups of output channels",
        "feature-map gradient",
        "weight gradient",
        "bound by kind",
        "predicted",
    ):
        assert words in text
    assert "not cut into groups: " in text and "_13" in plan.whole


@pytest.fixture
def a_millisecond_each(monkeypatch):
    def costs(bound, count, x, y):
        return [1e-3] * len(build.grouped(bound, count).program.recurring.entries)

    monkeypatch.setattr(build, "measured", costs)


def test_non_conv_tasks_of_the_backward_pass_run_inside_conv_layers(make, images, concurrent, a_millisecond_each):
    """What stands before layer 7 takes the gradient of its first group while layer 7 has the second one to do."""
    _, step = concurrent(make("vgg"), images([4], torch.float32), placement="kind")
    timed = walk(Schedule(list(step.plan().recurring().entries)), lambda action: 1e-3, handover=5e-5).timed
    upper = next(t for t in timed if t.lane == CONV and t.action.label == "I_7.0/1")
    lower = next(t for t in timed if t.lane == NONCONV and any(r.name == "d._6[0]" for r in t.action.reads))
    assert upper.start < lower.start < upper.end


@pytest.mark.parametrize("best", [1, 2, 4])
def test_groups_are_those_that_should_be_fastest(make, images, concurrent, monkeypatch, best):
    def costs(bound, count, x, y):
        entries = build.grouped(bound, count).program.recurring.entries
        return [(1.0 if count == best else 2.0) / len(entries)] * len(entries)

    monkeypatch.setattr(build, "measured", costs)
    _, step = concurrent(make("vgg"), images([4], torch.float32), groups=None)
    assert step.plan().groups == best
    assert [c.groups for c in step.plan().considered] == [1, 2, 4]
    assert "one after the other, ms" in step.plan().table()


def test_where_no_layer_is_wide_enough_one_group_is_all(images, concurrent):
    net = nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 5))
    _, step = concurrent(net, images([4], torch.float32), groups=None)
    assert [c.groups for c in step.plan().considered] == [1]


@pytest.mark.parametrize(
    ("groups", "said"),
    [(1000, "1000 groups of at least 2 channels need 2000, and the widest layer has 40"), (2, None)],
)
def test_more_groups_than_any_layer_has_are_said_to_change_nothing(images, concurrent, groups, said):
    net = nn.Sequential(nn.Conv2d(3, 40, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1440, 5))
    _, step = concurrent(net, images([4], torch.float32), groups=groups)
    plan = step.plan()
    if said is None:
        assert plan.groups == groups and not any("stays whole" in note for note in plan.notes)
    else:
        assert (plan.groups, plan.whole) == (1, ())
        assert f"note: every layer stays whole: {said}" in plan.table() and "whole layers" in plan.table()


def test_measuring_leaves_everything_as_it_was(make, images, concurrent, differing):
    model, data = make("dense", dropout=0.3), images([4, 4], torch.float32)
    expected, _ = concurrent(model, data, groups=4, engine="inline")
    before = torch.get_rng_state()
    got, step = concurrent(model, data, groups=4, forecast=True, engine="inline")
    assert "not measured" not in step.plan().table()
    assert torch.equal(before, torch.get_rng_state())
    assert differing(got, expected) == []


def test_a_change_of_mode_keeps_the_groups(make, images):
    model = make("vgg")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Concurrent(groups=2, engine="inline").bind(model, F.cross_entropy, optimizer) as step:
        for number, (x, y) in enumerate(images([4] * 3, torch.float32)):
            model[1].train(number != 1)
            model[0].requires_grad_(number != 2)
            step(x, y)
            assert step.plan().groups == 2
    assert model[1].num_batches_tracked == 2
    assert step.state() == {"batch": 3, "version": 3, "groups": 2}


@pytest.mark.parametrize("engine", ["inline", "threads"])
def test_a_failure_names_the_task(make, images, concurrent, engine):
    def disturb(lane, action):
        if action.label == "G_3.1/1":
            raise ValueError("bad weather")

    with pytest.raises(WorkerFailed, match="weight gradient of batch 1 at _3: ValueError: bad weather"):
        concurrent(make("vgg"), images([4, 4], torch.float32), engine=engine, disturb=disturb)


def test_no_thread_is_left(make, images, concurrent):
    concurrent(make("vgg"), images([4], torch.float32))
    assert not [t for t in threading.enumerate() if t.name.startswith("convoy ")]


def test_a_run_with_measured_groups_is_repeated_and_resumed_with_these(make, images, differing, monkeypatch):
    """Whatever would be measured the next time."""
    chosen = iter([4, 1, 1])
    data = images([4] * 4, torch.float32)

    def parts():
        model = make("dense", dropout=0.3)
        return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def plan_for(*args, count, **options):
        return real(*args, count=count or next(chosen), **options)

    real = steps.plan_for
    monkeypatch.setattr(steps, "plan_for", plan_for)
    events, (model, optimizer) = [], parts()
    with Concurrent().bind(model, F.cross_entropy, optimizer, settings=Settings(threads=2), sink=events.append) as step:
        found = [step(x, y).loss.item() for x, y in data]
        assert step.state()["groups"] == 4

    again, optimizer = parts()
    run = oracle(again, F.cross_entropy, optimizer, Concurrent(), data, settings=Settings(threads=2), events=events)
    assert run.plan.groups == 4 and list(run.losses) == found
    assert differing(again.state_dict(), model.state_dict()) == []

    half, optimizer = parts()
    strategy = Concurrent(engine="inline")
    with Concurrent(groups=4, engine="inline").bind(half, F.cross_entropy, optimizer) as step:
        state = [step(x, y) and step.state() for x, y in data[:2]][-1]
    with strategy.bind(half, F.cross_entropy, optimizer) as step:
        step.restore(state)
        for x, y in data[2:]:
            step(x, y)
        assert step.plan().groups == 4
    assert differing(half.state_dict(), model.state_dict()) == []


def test_by_name():
    assert make_strategy("concurrent", groups=2) == Concurrent(groups=2)
