import threading
import tomllib
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from convoy.errors import Diverged, InternalError, OptionError
from convoy.strategies.base import Settings
from convoy.strategies.bilayered import BiLayered
from convoy.strategies.hybrid import Hybrid
from convoy.strategies.pipelined import Pipelined
from convoy.strategies.registry import make_strategy, strategy_values
from convoy.strategies.sequential import Sequential
from convoy.strategies.switching import Stall
from convoy.training.toml import dump_toml

LOSS = nn.CrossEntropyLoss()
CUTS = ["conv2", "fc"]


def plain_loop(made, data):
    """The loop that a person writes."""
    losses = []
    for x, y in data:
        made.optimizer.zero_grad()
        loss = LOSS(made.model(x.contiguous(memory_format=torch.channels_last)), y)
        loss.backward()
        made.optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def pipelined_steps(strategy, made, data, begin=0, **options):
    with strategy.bind(made.model, LOSS, made.optimizer, settings=Settings(threads=1, **options)) as step:
        step.restore({"batch": begin, "version": begin})
        results = [step(x, y) for x, y in data]
        return [float(r.loss) for r in [*results, *step.drain()] if r is not None]


def train(strategy, made, data, sink=None, **options):
    with strategy.bind(made.model, LOSS, made.optimizer, settings=Settings(threads=1, **options), sink=sink) as step:
        results = [step(x, y) for x, y in data]
        results = [r for r in [*results, *step.drain()] if r is not None]
        assert [r.batch for r in results] == list(range(len(data)))
        return [float(r.loss) for r in results]


@given(
    at=st.integers(1, 8),
    clock=st.sampled_from(["registers", "1f1b"]),
    accumulate=st.sampled_from([1, 3]),
    cuts=st.sampled_from([CUTS, CUTS[:1], []]),
    pipelined_first=st.booleans(),
    engine=st.sampled_from(["threads", "inline"]),
)
@settings(max_examples=15)
def test_equals_one_by_hand_wherever_the_switch_falls(
    parts, batches, same, at, clock, accumulate, cuts, pipelined_first, engine
):
    pipelined = Pipelined(cuts=cuts, clock=clock, accumulate=accumulate, engine=engine)
    data, hand, ours = batches(9), parts(), parts()
    hand.model.to(memory_format=torch.channels_last)
    if pipelined_first:
        expected = pipelined_steps(pipelined, hand, data[:at]) + plain_loop(hand, data[at:])
        hybrid = Hybrid(pipelined, Sequential(), f"batch:{at}")
    else:
        expected = plain_loop(hand, data[:at])
        hand.optimizer.zero_grad()
        expected += pipelined_steps(pipelined, hand, data[at:], begin=at)
        hybrid = Hybrid(Sequential(), pipelined, f"batch:{at}")
    events = []
    assert train(hybrid, ours, data, events.append) == expected
    same(hand, ours)
    (decision,) = [e for e in events if e.kind == "decision"]
    assert (decision.name, decision.batch, decision.data["cause"]) == ("switch", at, "user")
    assert (decision.data["from"], decision.data["to"]) == (hybrid.first.name, hybrid.then.name)


@pytest.mark.parametrize("pipelined_first", [True, False])
def test_random_layers_draw_on(parts, batches, same, pipelined_first):
    # Without staleness both sides compute the same, so the switch must not be seen.
    one, other = Pipelined(cuts=[]), Sequential()
    pair = (one, other) if pipelined_first else (other, one)
    whole, ours = parts(0.4), parts(0.4)
    assert train(Hybrid(*pair, "batch:3"), ours, batches(6), seed=9) == train(other, whole, batches(6), seed=9)
    same(whole, ours)


def test_it_is_not_one_of_the_two_alone(parts, batches):
    made = [parts() for _ in range(3)]
    pipelined = Pipelined(cuts=CUTS)
    strategies = [Hybrid(pipelined, Sequential(), "batch:4"), pipelined, Sequential()]
    losses = [train(s, m, batches(9)) for s, m in zip(strategies, made, strict=True)]
    assert len({tuple(values) for values in losses}) == 3


def test_the_first_ones_workers_go_with_it(parts, batches):
    def workers():
        return [t.name for t in threading.enumerate() if t.name.startswith("convoy ")]

    made, data, before = parts(), batches(6), len(workers())
    with Hybrid(Pipelined(cuts=CUTS), Sequential(), "batch:2").bind(made.model, LOSS, made.optimizer) as step:
        step(*data[0])
        step(*data[1])
        assert len(workers()) == before + 3
        assert step.plan().first.delays == (4, 2, 0) and step.plan().then is None
        step(*data[2])
        assert len(workers()) == before
        plan = step.plan()
        assert plan.to_dict()["first"]["strategy"] == "pipelined" and plan.then.strategy == "sequential"
        step(*data[3])
        assert step.plan() is plan


def test_an_own_loop_says_when_epochs_begin(parts, batches):
    made, data, events = parts(), batches(3), []
    hybrid = Hybrid(Pipelined(cuts=CUTS), Sequential(), switch="stall:1")
    with hybrid.bind(made.model, LOSS, made.optimizer, sink=events.append) as step:
        for epoch, accuracy in enumerate([0.3, 0.5, 0.5, 0.4]):
            step.begin_epoch(epoch, 4)
            for x, y in data:
                step(x, y)
            step.drain()
            step.end_epoch(validation_accuracy=accuracy)
    (decision,) = [e for e in events if e.kind == "decision"]
    assert decision.batch == 9 and decision.data["cause"] == "data" and decision.data["waited"] == 1


def test_an_own_loop_that_does_not_is_told(parts, batches):
    made = parts()
    with Hybrid(Pipelined(cuts=CUTS), Sequential(), 2).bind(made.model, LOSS, made.optimizer) as step:
        with pytest.raises(OptionError, match="no epoch was begun") as error:
            step(*batches(2)[0])
        assert "begin_epoch" in error.value.hint


def test_a_state_between_batches_in_flight_is_refused(parts, batches):
    made, data = parts(), batches(4)
    with Hybrid(Pipelined(cuts=CUTS), Sequential(), "batch:2").bind(made.model, LOSS, made.optimizer) as step:
        for x, y in data[:3]:
            step(x, y)
        with pytest.raises(InternalError):
            step.state()
        step.drain()
        assert step.state()["batch"] == 3 and step.state()["switched"] is True


# --- with the Trainer ----------------------------------------------------------------------------------------------

INLINE = Pipelined(cuts=CUTS, engine="inline")  # quicker where two cores are shared; the numbers are those of threads
PAIRS = [
    pytest.param((INLINE, Sequential()), id="pipelined first"),
    pytest.param((Sequential(), INLINE), id="sequential first"),
]


def switches(made):
    return [e.batch for e in made.events if e.kind == "decision" and e.name == "switch"]


@pytest.mark.parametrize("validation", [True, False])
@pytest.mark.parametrize(("switch", "expected"), [(2, 12), (0.5, 9), ("batch:10", 10)])
@pytest.mark.parametrize("pair", PAIRS)
def test_fit_switches_where_it_was_asked_to(run, pair, switch, expected, validation):
    made = run(Hybrid(*pair, switch))
    history = made.fit(3, validation)
    assert switches(made) == [expected]
    steps = [e for e in made.events if e.kind == "step"]
    assert [s.batch for s in steps] == list(range(18))
    assert [r.samples for r in history.epochs] == [34] * 3


def test_fit_equals_two_trainers_one_after_the_other(run, same):
    first, then = INLINE, Sequential()
    hand = run(first, scheduler=False, dropout=0.0)
    hand.fit(2)
    losses = plain_loop_clipped(hand)
    made = run(Hybrid(first, then, 2), scheduler=False, dropout=0.0, settings=Settings(threads=1, clip=1.0))
    made.fit(3)
    assert [e.data["loss"] for e in made.events if e.kind == "step"][12:] == losses
    same(hand, made)


def plain_loop_clipped(made):
    losses = []
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for x, y in made.train:
        made.optimizer.zero_grad()
        loss = LOSS(made.model(x.contiguous(memory_format=torch.channels_last)), y)
        loss.backward()
        nn.utils.clip_grad_norm_(made.model.parameters(), 1.0)
        made.optimizer.step()
        losses.append(float(loss.detach()))
    torch.set_num_threads(before)
    return losses


def test_fit_switches_when_validation_stalls(run):
    made = run(Hybrid(INLINE, Sequential(), "stall:2"))
    made.fit(12)
    accuracies = [r.validation_accuracy for r in made.trainer.history.epochs]
    best, waited, expected = -1.0, 0, None
    for epoch, accuracy in enumerate(accuracies[:-1]):
        best, waited = (accuracy, 0) if accuracy > best else (best, waited + 1)
        if waited == 2:
            expected = 6 * (epoch + 1)
            break
    assert expected is not None and switches(made) == [expected]
    with pytest.raises(OptionError, match="no validation data"):
        made.fit(1, validation=False)


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("switch", "at", "epochs"),  # 13 and 17 are resumed from 12 and 16; 12 is the end of an epoch
    [(2, 7, 3), (2, 13, 3), (2, 17, 3), (0.6, 9, 3), (0.6, 13, 3), ("stall:1", 17, 5), ("stall:1", 21, 5)],
)
@pytest.mark.parametrize("pair", PAIRS)
def test_a_run_that_is_killed_on_either_side_and_resumed_ends_with_the_same_bits(
    run, same, tmp_path, pair, switch, at, epochs
):
    def die(event):
        if event.kind == "step" and event.batch == at:
            raise Killed

    options = {"run_dir": tmp_path, "save_every": 4}
    whole = run(Hybrid(*pair, switch), **options)
    whole.fit(epochs)
    assert switches(whole)
    first = run(Hybrid(*pair, switch), callbacks=[die], **options)
    with pytest.raises(Killed):
        first.fit(epochs)
    again = run(Hybrid(*pair, switch), **options)
    again.trainer.load(first.trainer.run_path)
    again.fit(epochs)
    same(whole, again)
    assert again.scheduler.state_dict() == whole.scheduler.state_dict()
    resumed = again.events[0].data["resumed_from"]
    assert switches(again) == [b for b in switches(whole) if b >= resumed]

    def losses(made):
        return {e.batch: e.data["loss"] for e in made.events if e.kind == "step"}

    assert losses(again) == {b: v for b, v in losses(whole).items() if b >= resumed}


def warnings(made):
    return [e.data["message"] for e in made.events if e.kind == "warning" and e.name == "switch"]


@pytest.mark.parametrize(
    ("switch", "message"), [("batch:1000", "12 mini-batches"), ("stall:9", "needs 11 at least"), (9, "2 epochs")]
)
def test_a_run_that_is_too_short_for_its_switch_says_so_before_it_trains(run, switch, message):
    made = run(Hybrid(INLINE, Sequential(), switch))
    made.fit(2)
    assert not switches(made)
    (said,) = warnings(made)
    assert message in said and "will not come" in said
    kinds = [e.kind for e in made.events]
    assert kinds.index("warning") < kinds.index("step")


def test_a_stall_that_never_came_is_said_before_the_run_ends(run, monkeypatch):
    better = iter(range(1, 9))  # every validation is the best so far
    monkeypatch.setattr(Stall, "update", lambda self, *_: improve(self, next(better)))
    made = run(Hybrid(INLINE, Sequential(), "stall:1"))
    made.fit(3)
    (said,) = warnings(made)
    assert "ends without its switch" in said
    assert not switches(made) and (made.events[-1].kind, made.events[-1].name) == ("run", "end")


def improve(stall, best):
    stall.best, stall.waited = best, 0


# --- what a run that diverges is told --------------------------------------------------------------------------------

SPIKE = Pipelined(cuts=CUTS, engine="inline", correction="spike")


@pytest.mark.parametrize(("pair", "named"), [((Sequential(), SPIKE), False), ((SPIKE, Sequential()), True)])
def test_only_the_part_that_trains_is_suspected(run, pair, named):
    made = run(Hybrid(*pair, 2), scheduler=False, settings=Settings(threads=1))
    made.optimizer.param_groups[0]["lr"] = 1e30
    with pytest.raises(Diverged, match=r"\(epoch 1\)") as caught:
        made.fit(3)
    assert ("'spike' changes the effective step" in caught.value.hint) is named
    assert "lower the learning rate" in caught.value.hint


@pytest.mark.filterwarnings("ignore:spike compensation")
@pytest.mark.parametrize("pair", [(Sequential(), SPIKE), (SPIKE, Sequential())])
def test_after_the_switch_it_is_the_other_one(parts, batches, pair):
    made, found = parts(), []
    with Hybrid(*pair, "batch:2").bind(made.model, LOSS, made.optimizer, settings=Settings(threads=1)) as step:
        for x, y in batches(4):
            step(x, y)
            found.append(step.suspects is not None)
    assert found == [part is SPIKE for part in pair for _ in range(2)]


# --- corrections that count updates --------------------------------------------------------------------------------

PIPEMARE = Pipelined(cuts=CUTS, engine="inline", correction="pipemare")


@pytest.mark.parametrize("engine", ["inline", "threads"])
def test_pipemare_begins_with_the_pipeline(parts, batches, same, engine):
    # It counts the pipeline's own updates: after the switch the numbers are those of one that nothing went before.
    pipelined = replace(PIPEMARE, engine=engine)
    data, hand, ours = batches(12), parts(), parts()
    hand.model.to(memory_format=torch.channels_last)
    expected = plain_loop(hand, data[:5])
    hand.optimizer.zero_grad()
    with pipelined.bind(hand.model, LOSS, hand.optimizer, settings=Settings(threads=1, total_steps=12)) as step:
        results = [step(x, y) for x, y in data[5:]]
        expected += [float(r.loss) for r in [*results, *step.drain()] if r is not None]
    assert train(Hybrid(Sequential(), pipelined, "batch:5"), ours, data, total_steps=12) == expected
    same(hand, ours)


@pytest.mark.parametrize("at", [9, 10, 13])
def test_a_run_resumed_while_pipemare_anneals_ends_with_the_same_bits(run, same, tmp_path, at):
    def die(event):
        if event.kind == "step" and event.batch == at:
            raise Killed

    hybrid, options = Hybrid(Sequential(), PIPEMARE, "batch:8"), {"run_dir": tmp_path, "save_every": 1}
    whole = run(hybrid, **options)
    whole.fit(4)  # 24 mini-batches, so that it anneals over 6
    first = run(hybrid, callbacks=[die], **options)
    with pytest.raises(Killed):
        first.fit(4)
    again = run(hybrid, **options)
    again.trainer.load(first.trainer.run_path)
    again.fit(4)
    assert again.events[0].data["resumed_from"] > 8
    same(whole, again)


def test_an_older_checkpoint_goes_on_as_it_was_begun(parts, batches):
    data, made = batches(6), [parts(), parts()]
    settings, hybrid = Settings(threads=1, total_steps=400), Hybrid(Sequential(), PIPEMARE, "batch:2")
    for one, began in zip(made, (2, 0), strict=True):
        with hybrid.bind(one.model, LOSS, one.optimizer, settings=settings) as step:
            for x, y in data[:4]:
                step(x, y)
            step.drain()
            state = step.state()
        assert state["step"]["began"] == 2
        state["step"]["began"] = began
        if not began:  # nobody wrote it, and updates were counted from the beginning of the run
            del state["step"]["began"]
        with hybrid.bind(one.model, LOSS, one.optimizer, settings=settings) as step:
            step.restore(state)
            for x, y in data[4:]:
                step(x, y)
    weights = [next(iter(one.model.parameters())) for one in made]
    assert not torch.equal(*weights)


def test_the_run_folder_names_both_and_the_plan_follows(run, tmp_path):
    made = run(Hybrid(Sequential(), Pipelined(cuts=CUTS), 1), run_dir=tmp_path)
    made.fit(2)
    config = tomllib.loads((made.trainer.run_path / "config.toml").read_text())["strategy"]
    assert make_strategy(**config) == Hybrid(Sequential(), Pipelined(cuts=CUTS), 1)
    plan = (made.trainer.run_path / "plan.json").read_text()
    assert '"then": {' in plan and '"delays"' in plan


# --- fields and names ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pipelined", Sequential(), 1), "first is 'pipelined', which is no strategy"),
        ((Pipelined(), Pipelined(), 1), "the same strategy"),
        ((Hybrid(Pipelined(), Sequential(), 1), Sequential(), 1), "a hybrid itself"),
        ((BiLayered(), Sequential(), 1), "a hybrid cannot hold bilayered"),
        ((Sequential(), BiLayered(), 1), "a hybrid cannot hold bilayered"),
        ((Pipelined(), Sequential(), 0), "switch is 0"),
        ((Pipelined(), Sequential(), "soon"), "switch is 'soon'"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(OptionError, match=message) as error:
        Hybrid(*arguments)
    assert error.value.hint


def test_what_the_second_one_refuses_is_said_before_the_first_one_trains(parts):
    model = parts().model
    with pytest.raises(OptionError, match="LBFGS"):
        Hybrid(Sequential(), Pipelined(), 1).bind(model, LOSS, torch.optim.LBFGS(model.parameters()))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"switch": "0.5", "stages": 3}, Hybrid(Pipelined(stages=3), Sequential(), 0.5)),
        ({"first": "sequential", "then": "pipelined", "switch": "2", "ppv": [1]},
         Hybrid(Sequential(), Pipelined(ppv=[1]), 2)),
        ({"switch": "stall:4"}, Hybrid(Pipelined(), Sequential(), "stall:4")),
        ({"first": Pipelined(stages=4), "switch": 3}, Hybrid(Pipelined(stages=4), Sequential(), 3)),
    ],
)  # fmt: skip
def test_by_name(fields, expected):
    made = make_strategy("hybrid", **fields)
    assert made == expected
    assert make_strategy(**tomllib.loads(dump_toml(strategy_values(made)))) == expected


@pytest.mark.parametrize(
    ("fields", "message", "hint"),
    [
        ({}, "when to switch", "0.5"),
        ({"switch": 1, "stagse": 2}, "no field 'stagse'", "'stages'"),
        ({"switch": 1, "first": "sequential", "then": "sequential"}, "the same strategy", "alone"),
        ({"switch": 1, "first": "pipelind"}, "unknown", "'pipelined'"),
    ],
)
def test_by_name_what_is_wrong_is_said(fields, message, hint):
    with pytest.raises(OptionError, match=message) as error:
        make_strategy("hybrid", **fields)
    assert hint in error.value.hint
