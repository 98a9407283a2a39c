import signal
import threading

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from convoy import Pipelined
from convoy.errors import DataError, Diverged, MachineError, OptionError, RunError, WorkerFailed
from convoy.strategies.base import Settings
from convoy.training.callbacks import EarlyStopping
from convoy.training.checkpoint import find_checkpoint
from convoy.training.trainer import Trainer


def of_kind(parts, kind):
    return [event for event in parts.events if event.kind == kind]


def by_hand(parts, epochs):
    """The loop that a person writes, on equal parts."""
    parts.model.to(memory_format=torch.channels_last)
    for _ in range(epochs):
        for x, y in parts.train:
            parts.optimizer.zero_grad()
            nn.functional.cross_entropy(parts.model(x.contiguous(memory_format=torch.channels_last)), y).backward()
            parts.optimizer.step()
            if parts.trainer._setup.scheduler_interval == "batch":
                parts.scheduler.step()
        if parts.scheduler is not None and parts.trainer._setup.scheduler_interval == "epoch":
            parts.scheduler.step()


@pytest.mark.parametrize("scheduler", [None, "multistep", "onecycle"])
@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_fit_equals_a_hand_written_loop(build, optimizer, scheduler):
    theirs = build(optimizer=optimizer, scheduler=scheduler)
    by_hand(theirs, 3)
    ours = build(optimizer=optimizer, scheduler=scheduler)
    ours.trainer.fit(ours.train, epochs=3)
    for name, value in theirs.model.state_dict().items():
        assert torch.equal(value, ours.model.state_dict()[name]), name
    assert [g["lr"] for g in theirs.optimizer.param_groups] == [g["lr"] for g in ours.optimizer.param_groups]


def test_history_holds_what_the_steps_add_up_to(build):
    parts = build(scheduler="multistep")
    history = parts.trainer.fit(parts.train, parts.validation, epochs=2)
    steps = of_kind(parts, "step")
    assert [s.batch for s in steps] == list(range(12)) and [s.data["index"] for s in steps] == [*range(6)] * 2
    for record in history.epochs:
        own = [s.data for s in steps if s.data["epoch"] == record.epoch]
        assert record.samples == 44 == sum(s["samples"] for s in own)
        assert record.train_loss == sum(s["loss"] * s["samples"] for s in own) / 44
        assert record.train_accuracy == sum(s["correct"] for s in own) / 44
        assert record.lr == own[-1]["lr"] and record.seconds > 0
    assert [e.data["epoch"] for e in of_kind(parts, "epoch")] == [1, 2]
    evaluation = parts.trainer.evaluate(parts.validation)
    assert evaluation.loss == history.last.validation_loss and evaluation.samples == 20
    assert evaluation.accuracy == history.last.validation_accuracy
    assert [e.name for e in of_kind(parts, "run")] == ["begin", "end"]
    assert of_kind(parts, "plan")[0].data["strategy"] == "sequential"


def test_a_second_fit_trains_on_and_equals_one_long_fit(build, same_state):
    long, short = build(scheduler="multistep"), build(scheduler="multistep")
    torch.manual_seed(3)
    long.trainer.fit(long.train, epochs=3)
    torch.manual_seed(3)
    short.trainer.fit(short.train, epochs=2)
    short.trainer.fit(short.train)
    same_state(long, short)


# --- batches in flight ---------------------------------------------------------------------------------------------


def test_results_are_read_late_and_in_order(build, delayed):
    strategy, bound = delayed
    parts = build(strategy=strategy(ready=False), samples=8 * 40)
    behind = []
    parts.trainer._callbacks = (
        *parts.trainer._callbacks,
        lambda e: behind.append(bound[0].batch - e.batch) if e.kind == "step" else None,
    )
    parts.trainer.fit(parts.train)
    assert bound[0].reads == list(range(40))
    # 2 in flight, 8 unread, and the one that is being read.
    assert behind[:30] == [11] * 30 and behind[-1] == 1


def test_what_is_ready_is_read_at_once(build, delayed):
    strategy, bound = delayed
    parts = build(strategy=strategy(), samples=80)
    behind = []
    parts.trainer._callbacks = (lambda e: behind.append(bound[0].batch - e.batch) if e.kind == "step" else None,)
    parts.trainer.fit(parts.train)
    assert behind[:8] == [3] * 8
    assert of_kind(parts, "step") == []


def test_no_drain_between_epochs_without_validation(build, delayed):
    strategy, bound = delayed
    parts = build(strategy=strategy())
    history = parts.trainer.fit(parts.train, epochs=3)
    assert [d for d in bound[0].drains if d[1]] == [(18, 2)]
    assert [r.samples for r in history.epochs] == [44] * 3
    decisions = of_kind(parts, "decision")
    assert [(d.name, d.batch, d.data) for d in decisions] == [("drain", 18, {"cause": "user", "reason": "end"})]
    assert bound[0].closed == 1


def test_validation_and_checkpoints_drain_and_say_so(build, delayed, tmp_path):
    strategy, bound = delayed
    parts = build(strategy=strategy(), run_dir=tmp_path, save_every=4)
    parts.trainer.fit(parts.train, parts.validation, epochs=2)
    decisions = [(d.batch, d.data["reason"]) for d in of_kind(parts, "decision")]
    assert decisions == [
        (4, "checkpoint"),
        (6, "validation"),
        (8, "checkpoint"),
        (12, "checkpoint"),
    ]
    assert [d[0] for d in bound[0].drains if d[1]] == [4, 6, 8, 12]


def test_the_learning_rate_is_that_of_the_entry_and_no_warning_appears(build, delayed):
    strategy, bound = delayed
    parts = build(strategy=strategy(depth=3), scheduler="onecycle")
    reference = build(scheduler="onecycle")
    expected = []
    for _ in range(12):
        expected.append(reference.scheduler.get_last_lr()[0])
        reference.optimizer.step()
        reference.scheduler.step()
    parts.trainer.fit(parts.train, epochs=2)  # warnings are errors here
    assert bound[0].updates == list(enumerate(expected))
    assert [s.data["lr"] for s in of_kind(parts, "step")] == expected


def test_a_callback_may_evaluate_in_the_middle(build, delayed):
    strategy, bound = delayed
    losses = []

    def look(event):
        if event.kind == "step" and event.batch == 3:
            losses.append(parts.trainer.evaluate(parts.validation))
            assert not bound[0].flight

    parts = build(strategy=strategy(), callbacks=[look])
    parts.trainer.fit(parts.train)
    assert len(losses) == 1
    assert [s.batch for s in of_kind(parts, "step")] == list(range(6))


# --- stopping ------------------------------------------------------------------------------------------------------


def test_stop_ends_after_the_batch_and_fit_goes_on_from_there(build, delayed, same_state):
    strategy, _ = delayed

    def stop(event):
        if event.kind == "step" and event.batch == 7:
            parts.trainer.stop()

    whole, parts = build(strategy=strategy(depth=0)), build(strategy=strategy(depth=0), callbacks=[stop])
    torch.manual_seed(3)
    whole.trainer.fit(whole.train, epochs=3)
    torch.manual_seed(3)
    parts.trainer.fit(parts.train, epochs=3)
    assert [s.batch for s in of_kind(parts, "step")] == list(range(8)) and len(parts.trainer.history) == 1
    torch.manual_seed(99)  # what was drawn in between must not matter
    parts.trainer.fit(parts.train, epochs=3)
    same_state(whole, parts)


def test_early_stopping(build):
    parts = build(early_stopping=EarlyStopping(patience=2, min_delta=1e9, metric="validation_loss"))
    history = parts.trainer.fit(parts.train, parts.validation, epochs=10)
    assert len(history) == 3 and history.stopped_early == "validation_loss has not improved for 2 epochs"
    assert of_kind(parts, "run")[-1].data["status"] == "stopped"


def test_keep_best_brings_the_best_weights_back(build, tmp_path):
    states = {}

    def remember(event):
        if event.kind == "epoch":
            states[event.data["epoch"]] = {k: v.clone() for k, v in parts.model.state_dict().items()}

    parts = build(keep_best=True, callbacks=[remember], run_dir=tmp_path)
    for group in parts.optimizer.param_groups:
        group["lr"] = 0.6  # unsteady
    history = parts.trainer.fit(parts.train, parts.validation, epochs=5)
    accuracies = [r.validation_accuracy for r in history.epochs]
    assert history.best_epoch == accuracies.index(max(accuracies)) + 1 < 5
    for name, value in parts.model.state_dict().items():
        assert torch.equal(value, states[history.best_epoch][name])
    best = find_checkpoint(parts.trainer.run_path, "best")
    assert torch.equal(best.model["fc.weight"], states[history.best_epoch]["fc.weight"])
    last = find_checkpoint(parts.trainer.run_path)
    assert torch.equal(last.model["fc.weight"], states[5]["fc.weight"])


def test_a_loss_that_is_not_finite_names_batch_and_rate(build):
    parts = build(scheduler="multistep")
    parts.optimizer.param_groups[0]["lr"] = 1e38
    with pytest.raises(
        Diverged, match=r"the loss of batch \d \(epoch 1\) is (nan|inf) at learning rate 1e\+38"
    ) as error:
        parts.trainer.fit(parts.train, epochs=2)
    assert "learning rate" in error.value.hint
    assert of_kind(parts, "run")[-1].data["status"] == "failed"
    with pytest.raises(RunError, match="failed"):
        parts.trainer.fit(parts.train)


def test_a_loss_that_is_not_finite_at_once_is_not_the_rates_fault(build):
    parts = build()
    with torch.no_grad():
        parts.model.fc.bias.fill_(torch.nan)
    with pytest.raises(Diverged, match="the loss of batch 0") as error:
        parts.trainer.fit(parts.train)
    assert "no weight has been updated yet" in error.value.hint and "learning rate" not in error.value.hint


@pytest.mark.parametrize("strategy", [None, Pipelined(cuts=["fc"])])
def test_labels_without_an_output_are_named(build, strategy):
    parts = build() if strategy is None else build(strategy=strategy)
    x, y = next(iter(parts.train))
    with pytest.raises(WorkerFailed, match=r"Target .* is out of bounds") as error:
        parts.trainer.fit([(x, y + 1000)], epochs=1)
    assert "as many outputs as there are classes" in error.value.hint


def test_the_epoch_in_which_training_began_or_was_resumed_says_so(build, tmp_path):
    parts = build(run_dir=tmp_path)
    parts.trainer.fit(parts.train, epochs=2)
    other = build(run_dir=tmp_path)
    other.trainer.load(parts.trainer.run_path)
    history = other.trainer.fit(other.train, epochs=4)
    assert [record.began for record in history.epochs] == [True, False, True, False]


def test_ctrl_c_waits_for_the_batch_saves_and_frees(build, delayed, tmp_path, same_state):
    strategy, bound = delayed

    def press(event):
        if event.kind == "step" and event.batch == 7:
            signal.raise_signal(signal.SIGINT)

    parts = build(strategy=strategy(), run_dir=tmp_path, callbacks=[press])
    with pytest.raises(KeyboardInterrupt):
        parts.trainer.fit(parts.train, epochs=3)
    assert bound[0].closed == 1 and not bound[0].flight
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert of_kind(parts, "decision")[-1].data["reason"] == "interrupt"
    event = of_kind(parts, "run")[-1]
    assert event.name == "interrupted" and event.data["checkpoint"].endswith("00000010")

    # The same trainer goes on, and a new one from the folder: to the same bits.
    other = build(strategy=strategy(), run_dir=tmp_path)
    other.trainer.load(parts.trainer.run_path)
    other.trainer.fit(other.train, epochs=3)
    parts.trainer.fit(parts.train, epochs=3)
    assert len(parts.trainer.history) == 3
    same_state(parts, other)


def test_an_interrupt_within_a_step_saves_nothing(build, tmp_path):
    calls = []

    def loss(output, target):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return nn.functional.cross_entropy(output, target)

    parts = build(run_dir=tmp_path)
    trainer = Trainer(parts.model, loss, parts.optimizer, run_dir=tmp_path, sinks=[parts.events.append])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(parts.train)
    assert list((trainer.run_path / "checkpoints").iterdir()) == []
    assert "no checkpoint" in of_kind(parts, "warning")[0].data["message"]
    with pytest.raises(RunError):
        trainer.fit(parts.train)


def test_no_thread_is_left(build, tmp_path):
    before = set(threading.enumerate())
    parts = build(run_dir=tmp_path)
    parts.trainer.fit(parts.train, parts.validation)
    assert set(threading.enumerate()) == before


# --- what can be wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"save_every": 5}, "save_every=5 needs a run_dir"),
        ({"save_every": 0, "run_dir": "x"}, "not 0"),
        ({"save_every": "hour", "run_dir": "x"}, "'hour'"),
        ({"scheduler_interval": "minute"}, "'minute'"),
        ({"strategy": "pipelind"}, "'pipelind' is unknown"),
        ({"scheduler": "plateau", "scheduler_interval": "batch"}, "ReduceLROnPlateau"),
    ],
)
def test_options_that_make_no_sense(build, options, message):
    with pytest.raises(OptionError, match=message):
        build(**options)


@pytest.mark.parametrize("epochs", [0, -1, 1.5, True])
def test_epochs_that_make_no_sense(build, epochs):
    parts = build()
    with pytest.raises(OptionError, match="epochs must be a whole number of at least 1"):
        parts.trainer.fit(parts.train, epochs=epochs)


def test_data_that_makes_no_sense(build):
    parts = build()
    with pytest.raises(DataError, match="TensorDataset does not yield batches"):
        parts.trainer.fit(TensorDataset(torch.zeros(3)))
    with pytest.raises(DataError, match="no batch in epoch 1"):
        parts.trainer.fit([])
    with pytest.raises(DataError, match="neither a pair"):
        parts.trainer.fit([(1, 2, 3)])
    with pytest.raises(DataError, match="no samples"):
        parts.trainer.evaluate([])
    parts.trainer.fit(parts.train)  # nothing was trained, nothing is broken
    with pytest.raises(DataError, match="no batch in epoch 3"):
        parts.trainer.fit((b for b in list(parts.train)), epochs=2)


def test_a_watched_metric_needs_validation_data(build):
    parts = build(early_stopping=EarlyStopping())
    with pytest.raises(OptionError, match="validation_loss is watched, but no validation data was given"):
        parts.trainer.fit(parts.train)


def test_a_folder_that_cannot_be_made_is_one_sentence(build, tmp_path):
    (tmp_path / "file").write_text("")
    parts = build(run_dir=tmp_path / "file")
    with pytest.raises(MachineError, match=r"cannot write .*file.*: a file of that name is in the way"):
        parts.trainer.fit(parts.train)


def test_a_full_disk_ends_the_run(build, tmp_path):
    parts = build(run_dir=tmp_path, name="run")
    original = parts.trainer._open_run

    def opened(epochs):
        run = original(epochs)
        run.events.symlink_to("/dev/full")
        return run

    parts.trainer._open_run = opened
    with pytest.raises(MachineError, match="the disk is full"):
        parts.trainer.fit(parts.train)


def test_a_model_that_trains_from_mappings_and_several_outputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, pixels, labels=None):
            return self.fc(pixels), pixels

    torch.manual_seed(0)
    model, events = Two(), []
    rows = [{"pixels": torch.randn(4), "labels": torch.tensor(i % 3)} for i in range(10)]
    trainer = Trainer(
        model,
        lambda output, batch: nn.functional.cross_entropy(output[0], batch["labels"]),
        torch.optim.SGD(model.parameters(), lr=0.1),
        sinks=[events.append],
        settings=Settings(channels_last=False),
    )
    loader = DataLoader(rows, batch_size=4)
    history = trainer.fit(loader, loader, epochs=2)
    assert history.last.train_accuracy is not None and history.last.samples == 10
