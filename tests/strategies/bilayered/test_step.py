"""Replicas that really train: equal to the plain loop where they should be, and the same again when repeated."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from convoy import oracle
from convoy.data.user import as_loader
from convoy.errors import CheckpointError, ConvoyError, DataError, Diverged, OptionError
from convoy.strategies.base import Settings, Turn
from convoy.strategies.bilayered import BiLayered
from convoy.strategies.bilayered.checks import check
from convoy.strategies.bilayered.replay import replay
from convoy.strategies.bilayered.step import BiLayeredStep
from convoy.strategies.bilayered.virtual import Fault, Script
from convoy.strategies.sequential import Sequential

ONE = BiLayered(nodes=1, batches=1)
SETTINGS = Settings(seed=3, threads=1, clip=1.0)


def data(count: int = 70, batch_size: int = 8, **options: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 2, 6, 6, generator=generator)
    set_ = TensorDataset(x, (x.mean((1, 2, 3)) * 20).round().long().remainder(3))
    return as_loader(set_, batch_size=batch_size, seed=3, **options)


@pytest.fixture
def train(run: Any) -> Any:
    """``train(strategy, loader, ...)``: the run after ``fit``."""

    def go(strategy: Any, loader: Any = None, epochs: int = 3, **options: Any) -> Any:
        made = run(strategy, **{"settings": SETTINGS, **options})
        made.train = data() if loader is None else loader
        made.fit(epochs=epochs)
        return made

    return go


# --- one node is the plain loop ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_one_node_equals_sequential_bit_for_bit(train: Any, same: Any, dropout: float) -> None:
    one, plain = train(ONE, dropout=dropout), train(Sequential(), dropout=dropout)
    same(one, plain)
    for a, b in zip(one.trainer.history.epochs, plain.trainer.history.epochs, strict=True):
        assert (a.samples, a.validation_loss, a.train_accuracy) == (b.samples, b.validation_loss, b.train_accuracy)
        assert a.train_loss == pytest.approx(b.train_loss, rel=1e-12)


@pytest.mark.parametrize("size", [1, 4])
def test_shorter_rounds_of_one_node_change_no_bit(train: Any, same: Any, size: int) -> None:
    same(train(BiLayered(nodes=1, batches=1, round=size)), train(Sequential()))


def test_one_node_with_tasks_inside_equals_sequential_with_tasks(train: Any, same: Any) -> None:
    same(train(BiLayered(nodes=1, batches=1, inner="tasks"), epochs=1), train(Sequential(inner="tasks"), epochs=1))


def test_a_user_loader_that_does_not_shuffle_keeps_its_order(train: Any, same: Any) -> None:
    loader = DataLoader(data().dataset, batch_size=8)
    same(train(ONE, loader), train(Sequential(), loader))


def test_a_schedule_per_epoch_is_followed(parts: Any, same: Any) -> None:
    from convoy.training.trainer import Trainer

    def go(strategy: Any) -> Any:
        made = parts()
        Trainer(made.model, nn.CrossEntropyLoss(), made.optimizer, scheduler=made.scheduler, strategy=strategy).fit(
            data(), epochs=6
        )
        return made

    same(go(ONE), go(Sequential()))


# --- several nodes -------------------------------------------------------------------------------------------------


def test_a_barrier_of_equal_nodes_is_the_average_of_separate_runs(parts: Any) -> None:
    """Local SGD by hand: two plain loops over half of the samples each, averaged."""
    made = parts()
    strategy = BiLayered(nodes=2, update="local-sgd", allocation="even")
    step = bound(strategy, made, data(64))
    begin = copy.deepcopy((made.model, made.optimizer))
    step(Turn(), None)
    step.drain()
    halves = []
    for node in (0, 1):
        model, optimizer = copy.deepcopy(begin)
        plain = Sequential().bind(model, nn.CrossEntropyLoss(), optimizer, settings=Settings(seed=3))
        order = step._samples.minibatches(((32 * node, 32 * node + 32),), 1, 0, 32)
        for x, y in step._samples.fetch(order, 1):
            plain(x, y)
        halves.append(dict(model.named_parameters()))
    for name, value in made.model.named_parameters():
        assert torch.allclose(value, (halves[0][name] + halves[1][name]) / 2, atol=1e-7), name


def bound(strategy: BiLayered, made: Any, loader: Any, passes: int = 4, **options: Any) -> BiLayeredStep:
    return BiLayeredStep(
        strategy,
        made.model,
        nn.CrossEntropyLoss(),
        made.optimizer,
        loader,
        passes=passes,
        settings=Settings(seed=3, threads=1),
        **options,
    )


@pytest.mark.parametrize("update", ["agwu", "agwu-mended", "sgwu", "sgwu-mended", "local-sgd"])
@pytest.mark.parametrize("deltas", ["float32", "bfloat16"])
def test_every_update_learns_and_is_the_same_again(train: Any, same: Any, update: str, deltas: str) -> None:
    strategy = BiLayered(nodes=(2, 1, 1), update=update, deltas=deltas, round=3)
    first, again = (train(strategy, data(300), epochs=4, scheduler=False) for _ in range(2))
    same(first, again)
    losses = [record.train_loss for record in first.trainer.history.epochs]
    assert losses[-1] < losses[0]
    held_out = 30 if update in ("agwu", "sgwu") else 0
    assert sum(record.samples for record in first.trainer.history.epochs) == 4 * (300 - held_out)


def test_each_sample_is_trained_as_often_as_there_are_epochs(parts: Any) -> None:
    """Counted at the data set itself, with a node that dies and comes back."""
    seen: list[int] = []

    class Counted(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 90

        def __getitem__(self, index: int) -> Any:
            seen.append(index)
            return torch.full((2, 6, 6), float(index)), index % 3

    script = Script((0.002, 0.001, 0.003), faults=(Fault(0.1, 0, "kill", back=0.2, noticed=0.01),))
    strategy = BiLayered(nodes=3, allocation="idpa-mended", batches=3)
    step = bound(strategy, parts(), as_loader(Counted(), batch_size=8, seed=3), script=script)
    while step.merged() < 4 * 90:
        step(Turn(), None)
    state = step.server_state
    assert state is not None
    check(state)
    assert state.again > 0  # what the dead node was at is leased again; it is not computed here, since it never arrives
    assert sum(seen.count(index) for index in range(90)) == 4 * 90
    counts = {seen.count(index) for index in range(90)}
    assert counts <= {3, 4, 5}  # allocation batches of 30, in 5, 4 and 3 local passes
    assert seen.count(0) and len(seen) == 360


# --- again ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "strategy",
    [
        BiLayered(nodes=3, batches=2),
        BiLayered(nodes=(3, 1), update="sgwu", round=2),
        BiLayered(nodes=2, update="agwu", allocation="idpa", deltas="bfloat16"),
    ],
)
def test_a_resumed_run_ends_with_the_same_bits(train: Any, run: Any, same: Any, tmp_path: Any, strategy: Any) -> None:
    options: dict[str, Any] = {"save_every": "epoch", "dropout": 0.3}
    whole = train(strategy, data(150), epochs=4, run_dir=tmp_path / "whole", **options)
    options["settings"] = SETTINGS
    first = run(strategy, run_dir=tmp_path / "cut", **options)
    first.train = data(150)

    def stop(event: Any) -> None:
        if event.kind == "epoch" and event.data["epoch"] == 2:
            first.trainer.stop()

    first.trainer._callbacks += (stop,)
    first.fit(epochs=4)
    assert len(first.trainer.history) < 4
    second = run(strategy, run_dir=tmp_path / "cut", **options)
    second.train = data(150)
    second.trainer.load(first.trainer.run_path)
    second.fit(epochs=4)
    same(second, whole)
    assert [r.train_loss for r in second.trainer.history.epochs] == [r.train_loss for r in whole.trainer.history.epochs]


def test_a_second_fit_goes_on(train: Any, same: Any) -> None:
    twice, once = train(ONE, epochs=2, scheduler=False), train(ONE, epochs=3, scheduler=False)
    twice.fit(epochs=1)
    same(twice, once)


def test_the_log_of_arrivals_replays_to_the_same_bits(parts: Any, same: Any) -> None:
    script = Script(
        (0.002, 0.001, 0.003),
        faults=(Fault(0.3, 0, "freeze", back=2.0), Fault(0.1, 2, "kill", back=0.4, noticed=0.05)),
    )
    strategy = BiLayered(nodes=3, update="agwu-mended", quality=True, round=2)
    made, events = parts(), []
    step = bound(strategy, made, data(120), script=script, sink=events.append)
    losses = []
    while step.merged() < 4 * step.samples:
        losses.append(float(step(Turn(), None).loss))
    step.drain()
    again = parts()
    repeated = replayed(again, strategy, events)
    same(made, again)
    assert repeated.losses == tuple(losses)
    assert repeated.first_difference is None
    assert replayed_with_another_seed(parts(), strategy, events).first_difference is not None


def replayed_with_another_seed(made: Any, strategy: BiLayered, events: Any) -> Any:
    torch.manual_seed(9)
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.add_(torch.randn_like(parameter))
    return replayed(made, strategy, events)


def replayed(made: Any, strategy: BiLayered, events: Any) -> Any:
    return replay(
        made.model,
        nn.CrossEntropyLoss(),
        made.optimizer,
        strategy,
        data(120),
        events,
        epochs=4,
        settings=Settings(seed=3, threads=1),
    )


@pytest.mark.parametrize("strategy", [BiLayered(nodes=3, round=2), BiLayered(nodes=(2, 1), update="sgwu", batches=2)])
def test_the_oracle_repeats_a_run_from_its_events(run: Any, same: Any, strategy: Any) -> None:
    """Also the rows of a run that the Trainer made, with a schedule per mini-batch; another rate is another run."""
    first = run(strategy, settings=SETTINGS)
    first.train = data(150)
    first.fit(epochs=4)

    def again(events: Any, rate: float | None = None) -> Any:
        made = run(strategy, settings=SETTINGS)
        if rate is not None:
            made.optimizer.param_groups[0]["lr"] = rate
        options = {"scheduler": made.scheduler, "per_step": True, "settings": SETTINGS}
        return made, oracle(
            made.model, nn.CrossEntropyLoss(), made.optimizer, strategy, data(150), events=events, **options
        )

    made, repeated = again(first.events)
    same(made, first)
    assert repeated.first_difference is None
    assert list(repeated.losses) == [event.data["loss"] for event in first.events if event.kind == "step"]
    assert repeated.plan.to_dict() == next(event.data for event in first.events if event.kind == "plan")
    assert {"arrival", "merge", "allocation"} <= {decision.name for decision in repeated.decisions}
    assert again(first.events, rate=1e-6)[1].first_difference == 0
    for options, message in (({}, "needs the order"), ({"events": []}, "no arrivals")):
        with pytest.raises(ConvoyError, match=message):
            oracle(made.model, nn.CrossEntropyLoss(), made.optimizer, strategy, data(150), **options)


def test_a_slow_node_is_named_once(parts: Any) -> None:
    events: list[Any] = []
    script = Script((0.001, 0.0021))
    step = bound(BiLayered(nodes=2, allocation="even", round=2), parts(), data(96), script=script, sink=events.append)
    for epoch in range(3):
        while step.merged() < (epoch + 1) * 96:
            step(Turn(), None)
        step.end_epoch()
    told = [event.data for event in events if event.kind == "warning"]
    assert [row["node"] for row in told] == [1]
    assert told[0]["message"].startswith("node 1 needs 2.1 times the seconds that its nominal speed promises")
    assert "idpa-mended" in told[0]["message"]


# --- what is refused -----------------------------------------------------------------------------------------------


def test_a_run_is_resumed_with_as_many_nodes(parts: Any) -> None:
    first = bound(BiLayered(nodes=2), parts(), data())
    first(Turn(), None)
    first.drain()
    second = bound(BiLayered(nodes=3), parts(), data())
    second.restore(first.state())
    with pytest.raises(CheckpointError, match="2 nodes, this one has 3"):
        second(Turn(), None)


def test_weights_that_are_not_finite_end_the_run(parts: Any) -> None:
    made = parts()
    for group in made.optimizer.param_groups:
        group["lr"] = 1e30
    step = bound(BiLayered(nodes=2), made, data())
    with pytest.raises(Diverged, match="not finite 3 times in a row"):
        for _ in range(20):
            step(Turn(), None)


@pytest.mark.parametrize(
    ("options", "named"), [({"nodes": 2}, True), ({"nodes": 1}, False), ({"nodes": 2, "round": 1}, False)]
)
def test_merging_is_named_where_there_is_merging_and_rounds_could_be_shorter(
    options: dict[str, Any], named: bool
) -> None:
    assert ("try a shorter round" in str(BiLayered(**options).suspects)) is named


def test_the_hint_of_a_run_whose_weights_are_not_finite(run: Any) -> None:
    made = run(BiLayered(nodes=2), scheduler=False, settings=SETTINGS)
    made.optimizer.param_groups[0]["lr"] = 1e30
    with pytest.raises(Diverged) as caught:
        made.fit()
    assert str(caught.value.hint).startswith("merging replicas (agwu-mended) acts on the step like a larger batch")
    assert "lower the learning rate" in str(caught.value.hint)


def test_more_nodes_than_samples_are_refused(parts: Any) -> None:
    with pytest.raises(OptionError, match="nodes is 71, and there are 70 samples"):
        bound(BiLayered(nodes=71), parts(), data())


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (lambda d: DataLoader(d, batch_size=8, drop_last=True), "drops the last"),
        (lambda d: DataLoader(d, batch_size=8, sampler=WeightedRandomSampler([1.0] * 70, 70)), "WeightedRandomSampler"),
        (lambda d: DataLoader(d, batch_sampler=[[0, 1], [2]]), "would replace"),
        (lambda d: [(torch.zeros(2, 2, 6, 6), torch.zeros(2, dtype=torch.long))], "order of its own"),
    ],
)
def test_data_whose_order_leases_would_break_are_refused(train: Any, loader: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        train(ONE, loader(data().dataset))


def test_batches_one_by_one_are_refused_in_a_sentence(parts: Any) -> None:
    made = parts()
    with pytest.raises(OptionError, match="takes no batches one by one") as caught:
        ONE.bind(made.model, nn.CrossEntropyLoss(), made.optimizer)
    assert "fit(loader)" in str(caught.value.hint)


def test_events_say_who_did_what(train: Any) -> None:
    made = train(BiLayered(nodes=2, quality=True), data(120), epochs=2)
    tables = [event for event in made.events if event.kind == "nodes"]
    assert [len(event.data["nodes"]) for event in tables] == [2, 2]
    assert sum(row["share"] for row in tables[-1].data["nodes"]) == pytest.approx(1)
    assert all(0 <= row["quality"] <= 1 for row in tables[-1].data["nodes"])
    lanes = {event.lane for event in made.events if event.kind == "action"}
    assert lanes == {"node 0", "node 1"}
    plan = next(event for event in made.events if event.kind == "plan")
    assert (plan.data["samples"], plan.data["held_out"]) == (108, 12)
