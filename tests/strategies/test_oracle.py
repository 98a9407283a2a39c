import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from convoy import oracle
from convoy.errors import InputError, InternalError, OptionError
from convoy.events.event import Event
from convoy.schedule.decision import Decision
from convoy.strategies.base import Settings, Strategy
from convoy.strategies.hybrid import Hybrid
from convoy.strategies.oracle import inline
from convoy.strategies.pipelined import Pipelined
from convoy.strategies.record import Record
from convoy.strategies.sequential import Sequential

LOSS = nn.CrossEntropyLoss()
CUTS = ["conv2", "fc"]
PIPELINED = Pipelined(cuts=CUTS, engine="threads")


def replay(made, parts, strategy, events, *, epochs=3, settings=None, dropout=0.3, **options):
    """The run ``made`` again from equal parts: its batches, and its scheduler between them."""
    again = parts(dropout)

    def batches():
        for _ in range(epochs):
            for batch in made.train:
                yield batch
                again.scheduler.step()

    settings = settings or Settings(seed=3, threads=2, clip=1.0)
    run = oracle(again.model, LOSS, again.optimizer, strategy, batches(), settings=settings, events=events, **options)
    return again, run


def losses(made):
    return {e.batch: e.data["loss"] for e in made.events if e.kind == "step"}


def rows(made):
    return [json.loads(line) for line in (made.trainer.run_path / "events.jsonl").read_text().splitlines()]


def drains(made):
    return [e.batch for e in made.events if e.kind == "decision" and e.name == "drain"]


@pytest.mark.parametrize(
    "strategy",
    [
        PIPELINED,
        replace(PIPELINED, placement="split"),
        replace(PIPELINED, clock="1f1b", accumulate=3, correction="predict:linear+spike"),
        Hybrid(PIPELINED, Sequential(), 0.6),
        Hybrid(Sequential(), PIPELINED, 0.2),
        Hybrid(PIPELINED, Sequential(), "stall:1"),
        Sequential(),
    ],
    ids=["registers", "split", "1f1b", "hybrid", "hybrid reversed", "hybrid at a stall", "sequential"],
)
def test_a_run_replays_from_its_events_to_the_same_bits(run, parts, same, tmp_path, strategy):
    made = run(strategy, run_dir=tmp_path, save_every=4)
    made.fit(3)
    for events in (made.events, rows(made)):
        again, replayed = replay(made, parts, strategy, events)
        same(made, again)
        assert dict(enumerate(replayed.losses)) == losses(made) and len(replayed.losses) == 18
        assert replayed.first_difference is None
        recorded = [(e.name, e.batch) for e in made.events if e.kind == "decision" and e.batch < 18]
        assert sorted((d.name, d.batch) for d in replayed.decisions) == sorted(recorded)


def test_the_oracle_counts_pipemares_updates_from_the_switch_too(run, parts, same):
    settings = Settings(seed=3, threads=2, clip=1.0, total_steps=18)
    hybrid = Hybrid(Sequential(), replace(PIPELINED, correction="pipemare"), 1)
    made = run(hybrid, settings=settings)
    made.fit(3)
    again, replayed = replay(made, parts, hybrid, made.events, settings=settings)
    same(made, again)
    assert dict(enumerate(replayed.losses)) == losses(made)


def test_the_decisions_matter(run, parts):
    made = run(PIPELINED)
    made.fit(3)
    assert drains(made) == [6, 12, 18]
    _, without = replay(made, parts, PIPELINED, None)
    assert without.losses[:6] == tuple(losses(made)[b] for b in range(6))
    assert without.losses != tuple(losses(made).values())
    by_hand = [Decision("drain", batch, "user") for batch in drains(made)]
    _, same_again = replay(made, parts, PIPELINED, by_hand)
    assert same_again.losses == tuple(losses(made).values())
    steps = [e for e in made.events if e.kind == "step"]
    _, told = replay(made, parts, PIPELINED, steps)
    first = next(b for b, loss in losses(made).items() if loss != without.losses[b])
    assert told.first_difference == first


class Killed(Exception):
    pass


@pytest.mark.parametrize("strategy", [PIPELINED, Hybrid(Sequential(), PIPELINED, 0.5)], ids=["pipelined", "hybrid"])
@pytest.mark.parametrize("at", [9, 10, 13])
def test_a_run_that_was_killed_and_resumed_replays_in_one_go(run, parts, same, tmp_path, strategy, at):
    def die(event):
        if event.kind == "step" and event.batch == at:
            raise Killed

    first = run(strategy, run_dir=tmp_path, save_every=4, callbacks=[die])
    with pytest.raises(Killed):
        first.fit(3)
    made = run(strategy, run_dir=tmp_path)  # from now on no checkpoints, so other drains
    made.trainer.load(first.trainer.run_path)
    made.fit(3)
    again, replayed = replay(made, parts, strategy, rows(made))
    same(made, again)
    assert replayed.first_difference is None and len(replayed.losses) == 18


def test_measured_cuts_are_those_of_the_record(run, parts, same):
    made = run(PIPELINED)
    made.fit(1)
    automatic = Pipelined(stages=3)
    again, replayed = replay(made, parts, automatic, made.events, epochs=1)
    assert replayed.plan.cuts == tuple(CUTS)
    same(made, again)


@pytest.mark.parametrize(
    "strategy", [PIPELINED, Hybrid(Sequential(), PIPELINED, "batch:2"), Hybrid(PIPELINED, Sequential(), "batch:8")]
)
def test_a_recut_is_repeated(parts, batches, same, strategy):
    made, again, without, data, events = parts(), parts(), parts(), batches(9), []
    with strategy.bind(made.model, LOSS, made.optimizer, sink=events.append) as step:
        results = [step(x, y) for x, y in data[:4]] + step.drain()
        step.recut(["norm2", "drop"])
        events.append(Event("decision", "recut", batch=4, data={"cause": "timing", "cuts": ["norm2", "drop"]}))
        results += [step(x, y) for x, y in data[4:]] + step.drain()
    run = oracle(again.model, LOSS, again.optimizer, strategy, data, events=events)
    assert list(run.losses) == [float(r.loss) for r in results if r is not None]
    same(made, again)
    assert ("recut", 4) in [(d.name, d.batch) for d in run.decisions]
    drained = [e for e in events if e.name != "recut"] + [Decision("drain", 4, "user")]
    # The stages are others, and so is what each of them reads late.
    other = oracle(without.model, LOSS, without.optimizer, strategy, data, events=drained)
    assert other.losses != run.losses


def test_a_recut_of_what_is_gone_or_never_was(parts, batches):
    recut = Decision("recut", 4, "timing", {"cuts": ["norm2"]})
    made = parts()
    events = [recut, Decision("switch", 4, "user")]
    run = oracle(made.model, LOSS, made.optimizer, Hybrid(PIPELINED, Sequential(), 0.5), batches(6), events=events)
    assert [(d.name, d.batch) for d in run.decisions] == [("drain", 4), ("switch", 4)]
    with pytest.raises(OptionError, match="has no cuts"):
        oracle(made.model, LOSS, made.optimizer, Sequential(), batches(6), events=[recut])


def test_what_cannot_be_the_runs_is_refused(run, parts):
    made = run(PIPELINED, settings=Settings(seed=3, threads=6))
    made.fit(1)
    with pytest.raises(OptionError, match="threads a worker 2, the replay with 1") as error:
        replay(made, parts, PIPELINED, made.events, settings=Settings(seed=3, threads=3))
    assert "threads" in error.value.hint
    with pytest.raises(OptionError, match=r"delays \[4, 2, 0\], the replay with \[2, 1, 0\]"):
        replay(made, parts, replace(PIPELINED, clock="1f1b"), made.events, settings=Settings(seed=3, threads=6))


def test_another_seed_is_noticed(run, parts):
    made = run(PIPELINED)
    made.fit(1)
    _, replayed = replay(made, parts, PIPELINED, made.events, epochs=1, settings=Settings(seed=4, threads=2, clip=1.0))
    assert replayed.first_difference == 0


def test_a_stall_is_recomputed_and_compared(run, parts):
    strategy = Hybrid(PIPELINED, Sequential(), "stall:1")
    made = run(strategy)
    made.fit(4)
    (switch,) = [e for e in made.events if e.name == "switch" and e.kind == "decision"]

    def tampered(batch, accuracy):
        return [
            replace(e, data={**e.data, "validation_accuracy": accuracy})
            if e.kind == "epoch" and e.batch == batch
            else e
            for e in made.events
        ]

    with pytest.raises(InternalError, match=f"switched after {switch.batch}"):
        replay(made, parts, strategy, tampered(switch.batch - 1, 2.0), epochs=4)
    without = [e for e in made.events if e is not switch]
    with pytest.raises(InternalError, match="did not switch"):
        replay(made, parts, strategy, without, epochs=4)


def test_a_hybrid_without_a_record_must_say_the_batch(parts, batches):
    made = parts()
    with pytest.raises(OptionError, match="depends on epochs"):
        oracle(made.model, LOSS, made.optimizer, Hybrid(PIPELINED, Sequential(), 0.5), batches(4))
    run = oracle(made.model, LOSS, made.optimizer, Hybrid(PIPELINED, Sequential(), "batch:2"), batches(4))
    assert [(d.name, d.batch) for d in run.decisions] == [("switch", 2)] and len(run.losses) == 4


def test_it_stays_in_this_thread_and_its_actions_can_be_heard(parts, batches):
    made, events = parts(), []
    oracle(made.model, LOSS, made.optimizer, PIPELINED, batches(3), sink=events.append)
    labels = [e.name for e in events if e.kind == "action" and e.data["kind"] != "E"]
    # With the first delay at 4, nothing but forwards and the last stage's own backwards come before the drain.
    assert labels[:6] == ["F1.0", "F2.0", "F3.0", "B3.0", "U3.0", "F1.1"]
    assert inline(PIPELINED).engine == "inline"
    assert inline(Hybrid(Sequential(), PIPELINED, 1)).then.engine == "inline"


def test_what_has_no_oracle_or_is_no_event_is_refused(parts, batches):
    made = parts()

    class Foreign(Strategy):
        name = "foreign"

        def bind(self, *args, **options):
            raise NotImplementedError

    with pytest.raises(OptionError, match="foreign has no oracle"):
        oracle(made.model, LOSS, made.optimizer, Foreign(), batches(2))
    with pytest.raises(InputError, match="neither an event nor a decision"):
        oracle(made.model, LOSS, made.optimizer, PIPELINED, batches(2), events=["drain"])


def test_a_record_forgets_what_was_trained_again():
    def decided(name, batch):
        return Event("decision", name, batch=batch, data={"cause": "user"})

    begin = Event("run", "begin", data={"resumed_from": 8})
    events = [
        Event("run", "begin", data={"resumed_from": None}),
        Event("plan", "pipelined", data={"cuts": ["a"]}),
        decided("drain", 4),
        decided("drain", 8),
        decided("switch", 8),
        Event("plan", "pipelined", data={"cuts": ["b"]}),
        *(Event("step", "step", batch=n, data={"loss": 1.0}) for n in range(11)),
        decided("drain", 10),
        begin,
        Event("plan", "pipelined", data={"cuts": ["c"]}),
        *(Event("step", "step", batch=n, data={"loss": 2.0}) for n in range(8, 12)),
        decided("drain", 12),
    ]
    record = Record.of(events)
    assert record.drains == {4, 8, 12} and record.switch is None
    assert [plan["cuts"] for plan in record.plans[0]] == [["a"], ["c"]] and record.plans[1] == ()
    assert record.losses == {**dict.fromkeys(range(8), 1.0), **dict.fromkeys(range(8, 12), 2.0)}
    assert Record.of([*events, decided("switch", 12)]).switch.batch == 12


def test_the_models_mode_is_set(parts, batches):
    made, other = parts(0.3), parts(0.3)
    made.model.eval()
    for one in (made, other):
        oracle(one.model, LOSS, one.optimizer, PIPELINED, batches(3))
    assert all(torch.equal(v, other.model.state_dict()[k]) for k, v in made.model.state_dict().items())
