"""A hybrid's second part is planned on the run's first mini-batch, and what it refuses is refused there."""

import copy
import itertools
import random

import pytest
import torch
from torch import nn

from convoy.errors import ConvoyError, ModelError, OptionError
from convoy.strategies.base import Settings
from convoy.strategies.concurrent import Concurrent
from convoy.strategies.hybrid import Hybrid
from convoy.strategies.oracle import oracle
from convoy.strategies.pipelined import Pipelined, foresight, step
from convoy.strategies.pipelined.balance_bench import Bench
from convoy.strategies.sequential import Sequential
from convoy.strategies.speculative import Speculative

LOSS = nn.CrossEntropyLoss()
CUTS = ["conv2", "fc"]
INLINE = Pipelined(cuts=CUTS, engine="inline")
MEASURED = Pipelined(stages=2, engine="inline")


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    """Measuring is not what is tested here."""
    for name in ("PROFILE_SECONDS", "TRIAL_SECONDS", "WHOLE_SECONDS"):
        monkeypatch.setattr(f"convoy.strategies.pipelined.balance_bench.{name}", 0.1)
    monkeypatch.setattr("convoy.strategies.concurrent.build.BUDGET_SECONDS", 0.1)


@pytest.fixture
def planned(monkeypatch):
    """The pipelines that were planned, in order."""
    asked, plan = [], foresight.plan_pipeline

    def noted(strategy, *given):
        asked.append(strategy)
        return plan(strategy, *given)

    monkeypatch.setattr(foresight, "plan_pipeline", noted)
    monkeypatch.setattr(step, "plan_pipeline", noted)
    return asked


def bind(strategy, made, sink=None, **options):
    options = {"threads": 2, "seed": 3} | options
    return strategy.bind(made.model, LOSS, made.optimizer, settings=Settings(**options), sink=sink)


def values(made):
    return copy.deepcopy([made.model.state_dict(), made.optimizer.state_dict()])


def generators():
    return torch.get_rng_state().tolist(), random.getstate()


# --- what is refused -----------------------------------------------------------------------------------------------

REFUSED = [
    (Pipelined(ppv=[99]), {}, "goes past the last place to cut"),
    (Pipelined(cuts=["nowhere"]), {}, "runs no module 'nowhere'"),
    (Pipelined(stages=30), {}, "places to cut"),
    (Pipelined(cuts=CUTS, max_staleness=1), {}, "max_staleness is 1"),
    (Pipelined(cuts=CUTS), {"max_memory": 1000}, "max_memory is"),
    (Pipelined(cuts=CUTS, correction="pipemare"), {}, "how long the run is"),
    (Speculative(form="cut", cut="nowhere"), {}, "nowhere"),
]


@pytest.mark.parametrize(("then", "options", "message"), REFUSED)
def test_it_is_refused_before_anything_is_trained(parts, batches, same, then, options, message):
    made, untouched, events = parts(), parts(), []
    with bind(Hybrid(Sequential(), then, "batch:3"), made, events.append, **options) as bound:
        for x, y in batches(2):
            with pytest.raises((OptionError, ModelError), match=message):
                bound(x, y)
    same(made, untouched)
    assert not events


@pytest.mark.parametrize("options", [{"ppv": [99]}, {"cuts": CUTS, "max_staleness": 1}])
def test_fit_refuses_it_too(run, options):
    made = run(Hybrid(Sequential(), Pipelined(**options), 1))
    with pytest.raises(OptionError):
        made.fit(2)
    assert not [e for e in made.events if e.kind in ("step", "epoch", "plan")]


def test_labels_that_the_second_one_does_not_take(parts, batches):
    (x, y), *_ = batches(2)
    bound = bind(Hybrid(Sequential(), Speculative(), "batch:3"), parts())
    with bound, pytest.raises(ConvoyError, match="remembers by label"):
        bound(x, nn.functional.one_hot(y, 3).float())


# --- what it leaves as it was --------------------------------------------------------------------------------------

PARTS = {
    "plain": Sequential(),
    "tasks": Sequential(inner="tasks"),
    "pipelined": INLINE,
    "measured": MEASURED,
    "auto": Pipelined(stages="auto"),
    "concurrent": Concurrent(),
    "speculative": Speculative(warmup=2),
}


@pytest.mark.parametrize("then", [name for name in PARTS if name != "plain"])
@pytest.mark.parametrize("forecast", [True, False])
def test_planning_touches_nothing(parts, batches, same, then, forecast):
    made, untouched = parts(0.4), parts(0.4)
    for one in (made, untouched):
        one.model.to(memory_format=torch.channels_last)
    (x, y), *_ = batches(2)
    before = generators()
    with bind(PARTS[then], made, forecast=forecast) as bound:
        bound.foresee(x, y)
        assert bound.plan() is not None
        assert generators() == before and all(p.grad is None for p in made.model.parameters())
        same(made, untouched)
        assert [p.stride() for p in made.model.parameters()] == [p.stride() for p in untouched.model.parameters()]


@pytest.mark.parametrize(("first", "then"), list(itertools.permutations([name for name in PARTS if name != "auto"], 2)))
def test_the_first_one_trains_as_alone(parts, batches, same, first, then):
    one, other = PARTS[first], PARTS[then]
    data, alone, ours = batches(5), parts(0.4), parts(0.4)
    with bind(Hybrid(one, other, "batch:4"), ours, forecast=True) as bound:
        losses = [bound(x, y) for x, y in data[:4]] + bound.drain()
        losses = [float(r.loss) for r in losses if r is not None]
        state, plan = values(ours), bound.plan().first
        bound(*data[4])  # and the second one trains
        bound.drain()
        assert bound.plan().switched and bound.plan().then is not None
    if first == "measured":  # alone it might decide otherwise
        one = Pipelined(cuts=plan.cuts, engine="inline")
    if first == "concurrent":
        one = Concurrent(groups=plan.groups)
    with bind(one, alone) as bound:
        expected = [bound(x, y) for x, y in data[:4]] + bound.drain()
        expected = [float(r.loss) for r in expected if r is not None]
    assert losses == expected
    for a, b in zip(state, values(alone), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


# --- what is shown -------------------------------------------------------------------------------------------------


def test_both_plans_are_there_with_the_first_mini_batch(parts, batches):
    data, events = batches(4), []
    with bind(Hybrid(Sequential(), INLINE, "batch:2"), parts(), events.append) as bound:
        bound(*data[0])
        plan = bound.plan()
        assert plan.first.strategy == "sequential" and plan.then.delays == (4, 2, 0) and not plan.switched
        text = plan.table()
        assert text.index("until the switch:\nsequential") < text.index("from the switch on:\nSkipNet")
        bound(*data[1])
        assert bound.plan() is plan
        bound(*data[2])
        assert bound.plan().then is plan.then and bound.plan().table() == plan.then.table()
        bound.drain()
    assert [(e.name, e.batch) for e in events if e.kind == "plan"] == [("sequential", -1), ("pipelined", -1)]


def test_one_without_a_plan_is_named(parts, batches):
    with bind(Hybrid(INLINE, Sequential(), "batch:2"), parts()) as bound:
        bound(*batches(2)[0])
        assert bound.plan().table().endswith("from the switch on: sequential")
        bound.drain()


# --- the decision stays --------------------------------------------------------------------------------------------


def test_what_was_measured_before_is_trained(parts, batches, planned):
    events, data = [], batches(4)
    with bind(Hybrid(Sequential(), MEASURED, "batch:2"), parts(), events.append) as bound:
        bound(*data[0])
        cuts = bound.plan().then.cuts
        for x, y in data[1:]:
            bound(x, y)
        bound.drain()
    (plan,) = [e for e in events if e.kind == "plan" and e.name == "pipelined"]
    assert tuple(plan.data["cuts"]) == cuts and planned == [MEASURED]


@pytest.mark.parametrize("automatic", [MEASURED, Pipelined(stages="auto", engine="inline")], ids=["stages", "auto"])
def test_a_run_resumed_before_its_switch_keeps_the_decision(parts, batches, automatic, monkeypatch):
    data, made = batches(6), parts()
    hybrid = Hybrid(Sequential(), automatic, "batch:3")
    with bind(hybrid, made) as bound:
        bound(*data[0])
        cuts, state = bound.plan().then.cuts, bound.state()
    monkeypatch.setattr(Bench, "balanced", lambda *_: pytest.fail("the cuts are known"))
    with bind(hybrid, made) as again:
        again.restore(state)
        for x, y in data[1:]:
            again(x, y)
            assert again.plan().then.cuts == cuts
        again.drain()
        assert again.plan().switched


def test_a_run_resumed_before_its_switch_is_checked(parts, batches):
    data, made = batches(3), parts()
    hybrid = Hybrid(Sequential(), INLINE, "batch:3")
    with bind(hybrid, made) as bound:
        bound(*data[0])
        state = bound.state()
    del state["then"]  # as checkpoints of before have it
    with bind(hybrid, made, max_memory=1000) as again:
        again.restore(state)
        with pytest.raises(OptionError, match="max_memory"):
            again(*data[1])


@pytest.mark.parametrize("at", [3, 4])
def test_a_run_resumed_after_its_switch_plans_the_second_one_alone(parts, batches, planned, at):
    data, made = batches(6), parts()
    hybrid = Hybrid(INLINE, Pipelined(cuts=CUTS[:1], engine="inline"), "batch:3")
    with bind(hybrid, made) as bound:
        for x, y in data[:at]:
            bound(x, y)
        bound.drain()
        state = bound.state()
    planned.clear()
    with bind(hybrid, made) as again:
        again.restore(state)
        again(*data[at])
        again.drain()
    assert planned == [hybrid.then]


def freeze(made):
    for parameter in made.model.conv1.parameters():
        parameter.requires_grad_(False)


def new_head(made):
    torch.manual_seed(5)
    old, made.model.fc = made.model.fc, nn.Linear(36, 3)
    taken = dict(zip(old.parameters(), made.model.fc.parameters(), strict=True))
    for group in made.optimizer.param_groups:
        group["params"] = [taken.get(p, p) for p in group["params"]]
    for parameter in old.parameters():
        made.optimizer.state.pop(parameter)


@pytest.mark.parametrize("change", [freeze, new_head])
def test_a_model_changed_before_the_switch_trains_as_it_is(parts, batches, same, change):
    data, hand, ours = batches(6), parts(), parts()
    with bind(Hybrid(Sequential(), MEASURED, "batch:3"), ours) as bound:
        for x, y in data[:3]:
            bound(x, y)
        change(ours)
        cuts = bound.plan().then.cuts
        for x, y in data[3:]:
            bound(x, y)
        bound.drain()
        assert bound.plan().then.cuts == cuts
    with bind(Sequential(), hand) as bound:
        for x, y in data[:3]:
            bound(x, y)
    change(hand)
    with bind(Pipelined(cuts=cuts, engine="inline"), hand) as bound:
        bound.restore({"batch": 3, "version": 3})
        for x, y in data[3:]:
            bound(x, y)
        bound.drain()
    same(hand, ours)


def test_decisions_of_a_resumed_run_outlast_a_stop_before_its_first_batch(parts):
    """Also of a hybrid's second part."""
    chosen = {"cuts": ["conv2"], "clock": "1f1b", "accumulate": 2, "correction": "predict:linear"}
    state = {"batch": 4, "version": 4, "began": 0, **chosen}
    auto = Pipelined(stages="auto", engine="inline")
    with bind(auto, parts()) as bound:
        bound.restore(state)
        assert dict(bound.state()) == state
    with bind(Hybrid(Sequential(), auto, "batch:9"), parts()) as bound:
        whole = dict(bound.state())
        bound.restore({**whole, "then": {**state, "batch": 0, "version": 0}})
        assert chosen.items() <= bound.state()["then"].items()


def test_a_resumed_second_part_can_be_cut_anew(parts, batches):
    auto = Pipelined(stages=2, engine="inline", recut="auto")
    with bind(Hybrid(Sequential(), auto, "batch:1"), parts()) as bound:
        bound.restore({**bound.state(), "then": {"batch": 0, "version": 0, "began": 0, "cuts": ["conv2"]}})
        for x, y in batches(2):
            bound(x, y)
        assert bound._step._planned.profile is not None


def test_what_was_measured_of_the_first_part_stays_where_the_second_is_too_short(parts, batches):
    first = Pipelined(cuts=["conv2"], engine="inline")
    second = Pipelined(cuts=["fc"], engine="inline", clock="1f1b")
    with bind(Hybrid(first, second, "batch:5"), parts()) as bound:
        for x, y in batches(6):
            bound(x, y)
        bound.drain()
        assert bound.measured() is not None and bound.measured().clock == "registers"


def test_parts_that_were_chosen_alike_are_replayed(parts, batches, same):
    data, ours, theirs, events = batches(6), parts(), parts(), []
    strategy = Hybrid(Pipelined(cuts=["conv2"]), Pipelined(cuts=["conv2"], engine="inline"), "batch:3")
    with bind(strategy, ours, events.append) as bound:
        for x, y in data:
            bound(x, y)
        bound.drain()
    oracle(theirs.model, LOSS, theirs.optimizer, strategy, data, settings=Settings(threads=2, seed=3), events=events)
    same(ours, theirs)
