"""The step's interface, errors, events and resuming."""

import copy
import gc
import threading

import pytest
import torch
from torch import nn

from convoy import Sequential
from convoy.errors import DataError, ModelError, OptionError, WorkerFailed
from convoy.schedule.plan import Plan
from convoy.strategies.base import Settings
from convoy.strategies.registry import make_strategy, strategy_values
from convoy.strategies.tasks.plan import TaskPlan
from convoy.strategies.tasks.step import TaskStep


def bound(net, sink=None, loss=None, **settings):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    return Sequential(inner="tasks").bind(
        net, loss or nn.CrossEntropyLoss(), optimizer, settings=Settings(**{"threads": 1, **settings}), sink=sink
    )


def test_by_field_and_by_name():
    assert isinstance(bound(nn.Linear(2, 2)), TaskStep)
    assert make_strategy("sequential", inner="tasks") == Sequential(inner="tasks")
    assert strategy_values(Sequential()) == {"name": "sequential", "inner": "whole"}
    with pytest.raises(OptionError, match=r"inner is 'task'.*whole, tasks"):
        Sequential(inner="task")


def test_the_result_is_that_of_the_same_mini_batch(small_net, images):
    net = small_net()
    other = copy.deepcopy(net).to(memory_format=torch.channels_last)
    (x, y), _ = images([4, 4])
    with bound(net) as step:
        assert step.plan() is None
        result = step(x, y)
        assert (result.batch, result.ready, result.target is y) == (0, True, True)
        assert torch.equal(result.output, other(x.to(memory_format=torch.channels_last)))
        assert not result.output.requires_grad and not result.loss.requires_grad
        assert step.drain() == []
        assert net.conv.weight.grad is not None


def test_plan_and_events(small_net, images):
    events = []
    with bound(small_net(), events.append) as step:
        for x, y in images([4, 3]):
            step(x, y)
        plan = step.plan()
    assert [e.kind for e in events[:2]] == ["plan", "action"]
    assert TaskPlan.from_dict(events[0].data) == plan and isinstance(plan, Plan)
    assert plan.actions == 17 and [u.kind for u in plan.units] == ["conv2d", "batch_norm", "relu", "flatten", "linear"]
    updates = {e.name: e.data["writes"] for e in events if e.kind == "action" and e.data["kind"] == "U"}
    assert updates["Uconv.1"] == {"Wconv": 2}
    assert "17 actions a mini-batch on 1 worker of one thread" in plan.table()


def test_a_resumed_run_goes_on_with_the_same_bits(images, differing):
    def net():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(), nn.Linear(144, 5))

    data = images([5] * 4)
    whole, half = net(), net()
    with bound(whole) as step:
        for x, y in data:
            step(x, y)
    with bound(half) as step:
        for x, y in data[:2]:
            step(x, y)
        state = step.state()
    assert state == {"batch": 2, "version": 2}
    with bound(half) as step:
        step.restore(state)
        for x, y in data[2:]:
            assert step(x, y).batch >= 2
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), half.state_dict().values(), strict=True))


@pytest.mark.parametrize("engine", ["inline", "pool"])
def test_a_failure_names_node_and_batch(small_net, images, engine):
    def disturb(lane, action):
        if action.label == "Ibn.1":
            raise ValueError("bad weather")

    net = small_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    step = TaskStep(net, nn.CrossEntropyLoss(), optimizer, Settings(threads=1), None, engine=engine, disturb=disturb)
    (x, y), (x2, y2) = images([4, 4])
    step(x, y)
    with pytest.raises(WorkerFailed, match=r"input gradient of batch 1 at bn: ValueError: bad weather") as e:
        step(x2, y2)
    assert ">Ibn.1<" in e.value.grid
    step.close()


def test_a_batch_that_does_not_fit(small_net, images):
    (x, y), (x2, y2) = images([4, 4])
    with bound(small_net()) as step:
        step(x, y)
        with pytest.raises(DataError):
            step({"x": x2}, y2)
        with pytest.raises(WorkerFailed, match="forward of batch 1 at fc"):
            step(x2[:, :, :6, :6], y2)


def test_what_cannot_be_trained_by_tasks_is_refused():
    with pytest.raises(OptionError, match="cannot be cut"):
        net = nn.Linear(2, 2)
        Sequential(inner="tasks").bind(net, nn.MSELoss(), torch.optim.LBFGS(net.parameters()))
    with pytest.raises(OptionError, match="cores of a CPU"):
        bound(nn.Linear(2, 2), device="cuda")

    class Values(nn.Module):
        def forward(self, x):
            return self.weight * x if x.sum() > 0 else -x

    net = Values()
    net.weight = nn.Parameter(torch.ones(2))
    with pytest.raises(ModelError, match="Values cannot be captured"):
        bound(net)(torch.ones(2, 2), torch.ones(2, 2))


def test_no_thread_is_left(small_net, images):
    def alive():
        return [t for t in threading.enumerate() if t.name.startswith("convoy ")]

    (x, y), (x2, y2) = images([4, 4])
    step = bound(small_net(), threads=2)
    step(x, y)
    assert len(alive()) == 2
    step.close()
    step.close()
    assert not alive()
    step = bound(small_net(), threads=2)
    step(x2, y2)
    workers = alive()
    del step
    gc.collect()
    for worker in workers:
        worker.join(5)
    assert not alive()
