"""A resumed run equals the unbroken one, bit for bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from convoy.data.user import as_loader
from convoy.errors import CheckpointError
from convoy.strategies.base import Settings
from convoy.training.callbacks import EarlyStopping
from convoy.training.checkpoint import find_checkpoint, names_in
from convoy.training.trainer import Trainer


class Killed(Exception):
    """Stands for a death after ``batch`` batches were read."""


def die_after(batch):
    def callback(event):
        if event.kind == "step" and event.batch == batch:
            raise Killed

    return callback


def broken_and_resumed(build, tmp_path, at, *, epochs=4, validation=True, resume_options=None, **options):
    """A whole run, and one that dies after batch ``at`` and is taken up by new objects."""
    options = {"run_dir": tmp_path, "save_every": 4, **options}

    def fit(parts):
        parts.trainer.fit(parts.train, parts.validation if validation else None, epochs=epochs)

    torch.manual_seed(11)
    whole = build(**options)
    fit(whole)
    torch.manual_seed(11)
    first = build(**{**options, "callbacks": [die_after(at)]})
    with pytest.raises(Killed):
        fit(first)
    torch.manual_seed(77)
    again = build(**{**options, "seed": options.get("seed", 0)})
    torch.manual_seed(78)  # new objects, other generators
    again.trainer.load(first.trainer.run_path)
    fit(again)
    return whole, first, again


@pytest.mark.parametrize("scheduler", [None, "multistep", "onecycle", "plateau", "sequence"])
@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_in_the_middle_of_an_epoch(build, tmp_path, same_state, optimizer, scheduler):
    whole, _, again = broken_and_resumed(build, tmp_path, 17, optimizer=optimizer, scheduler=scheduler)
    assert again.events[0].data["resumed_from"] == 16
    assert len(again.trainer.history) == 4
    same_state(whole, again)


@pytest.mark.parametrize("at", [4, 5, 6, 11, 12, 23])
def test_wherever_it_dies(build, tmp_path, same_state, at):
    whole, _, again = broken_and_resumed(build, tmp_path, at, scheduler="multistep")
    same_state(whole, again)


@pytest.mark.parametrize("save_every", ["epoch", 4, 7])
@pytest.mark.parametrize("validation", [True, False])
def test_with_batches_in_flight(build, tmp_path, same_state, delayed, save_every, validation):
    strategy, _ = delayed
    whole, _, again = broken_and_resumed(
        build,
        tmp_path,
        17,
        strategy=strategy(depth=3),
        scheduler="onecycle",
        save_every=save_every,
        validation=validation,
    )
    same_state(whole, again)

    def drains(parts):
        return [(e.batch, e.data["reason"]) for e in parts.events if e.kind == "decision"]

    at = again.events[0].data["resumed_from"]
    assert drains(again) == [d for d in drains(whole) if d[0] > at]


def test_with_dropout_and_a_loader_that_draws(build, tmp_path, same_state):
    whole, _, again = broken_and_resumed(build, tmp_path, 9, dropout=0.4, optimizer="adam")
    same_state(whole, again)


def test_with_a_loader_of_convoy(build, tmp_path, same_state):
    generator = torch.Generator().manual_seed(1)
    samples = [(torch.randn(2, 8, 8, generator=generator), n % 3) for n in range(44)]
    whole, _, again = broken_and_resumed(
        build, tmp_path, 9, loader=lambda seed: as_loader(samples, batch_size=8, seed=seed)
    )
    same_state(whole, again)


def test_with_weights_in_another_memory_format(build, tmp_path, same_state):
    whole, _, again = broken_and_resumed(build, tmp_path, 9, settings=Settings(channels_last=False), optimizer="adam")
    same_state(whole, again)


def test_early_stopping_and_keep_best_remember(build, tmp_path, same_state):
    options = {
        "early_stopping": EarlyStopping(patience=2, metric="validation_accuracy"),
        "keep_best": True,
        "save_every": "epoch",
    }
    whole, first, again = broken_and_resumed(build, tmp_path, 20, epochs=12, **options)
    assert whole.trainer.history.best_epoch == again.trainer.history.best_epoch
    same_state(whole, again)
    assert find_checkpoint(first.trainer.run_path, "best").state["best"]["epoch"] == whole.trainer.history.best_epoch


def test_the_same_folder_goes_on_and_its_metrics_stand_once(build, tmp_path):
    whole, first, again = broken_and_resumed(build, tmp_path, 17)
    assert again.trainer.run_path == first.trainer.run_path
    assert len(list(tmp_path.iterdir())) == 2

    def rows(parts):
        clock = ("seconds", "samples_per_second", "busy", "began", "memory_bytes")
        return [{k: v for k, v in row.items() if k not in clock} for row in parts.trainer._run.read_metrics()]

    assert rows(whole) == rows(again)
    assert names_in(whole.trainer.run_path / "checkpoints") == ["00000024", "00000024-2"]  # last batch, end


def test_a_finished_run_can_be_made_longer(build, tmp_path, same_state):
    whole = build(scheduler="multistep")
    whole.trainer.fit(whole.train, epochs=4)
    short = build(scheduler="multistep", run_dir=tmp_path)
    short.trainer.fit(short.train, epochs=2)
    longer = build(scheduler="multistep", run_dir=tmp_path)
    torch.manual_seed(5)
    longer.trainer.load(short.trainer.run_path)
    assert longer.trainer.fit(longer.train, epochs=2) is longer.trainer.history  # nothing to do
    assert len(longer.trainer.history) == 2
    longer.trainer.fit(longer.train, epochs=4)
    same_state(whole, longer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adam"}, "written with optimizer SGD, this run has Adam"),
        ({"scheduler": "onecycle"}, "written with scheduler MultiStepLR, this run has OneCycleLR"),
        ({"scheduler": None}, "written with scheduler MultiStepLR, this run has None"),
        ({"seed": 3}, "written with seed 0, this run has 3"),
    ],
)
def test_what_belongs_to_another_run_is_refused_untouched(build, tmp_path, options, message):
    first = build(scheduler="multistep", run_dir=tmp_path)
    first.trainer.fit(first.train)
    other = build(**{"scheduler": "multistep", **options})
    before = {k: v.clone() for k, v in other.model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        other.trainer.load(first.trainer.run_path)
    assert all(torch.equal(v, other.model.state_dict()[k]) for k, v in before.items())


def test_another_model_is_refused_by_the_first_name(build, tmp_path):
    first = build(run_dir=tmp_path)
    first.trainer.fit(first.train)

    def load(model):
        Trainer(model, None, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)).load(first.trainer.run_path)

    wider = build().model
    wider.fc = torch.nn.Linear(36, 4)
    with pytest.raises(CheckpointError, match=r"fc\.weight has the shape \(3, 36\) in the checkpoint and \(4, 36\)"):
        load(wider)
    renamed = build().model
    renamed.head, renamed.fc = renamed.fc, torch.nn.Identity()
    with pytest.raises(CheckpointError, match=r"lacks head\.weight and 1 more"):
        load(renamed)
    wider.more = torch.nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match="optimizer groups of"):
        load(wider)


SCRIPT = """
import sys, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from convoy.training.trainer import Trainer

def parts(folder, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    g = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(80, 2, 8, 8, generator=g), torch.randint(0, 3, (80,), generator=g))
    trainer = Trainer(model, nn.CrossEntropyLoss(), optimizer, run_dir=folder, save_every=1, **options)
    return trainer, model, DataLoader(data, batch_size=8, shuffle=True)

if __name__ == "__main__":
    trainer, model, train = parts(sys.argv[1], name="killed", sinks=[lambda e: print(e.kind, flush=True)])
    trainer.fit(train, epochs=50)
"""


@pytest.mark.parametrize("delay", [0.0, 0.017])
def test_after_kill_9_training_goes_on_to_the_same_bits(tmp_path, delay):
    """Checkpoints are written after every batch, so the kill most likely falls into a write."""
    (tmp_path / "script.py").write_text(SCRIPT)
    source = Path(__file__).parents[2] / "src"
    path = os.pathsep.join([str(source), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    steps = 0
    with process:
        for line in process.stdout:
            steps += line.startswith("step")
            if steps == 14:
                time.sleep(delay)
                process.send_signal(signal.SIGKILL)
                break
        process.wait(timeout=30)

    space = {"__name__": "script"}
    exec(compile(SCRIPT, "script", "exec"), space)
    parts = space["parts"]
    trainer, model, train = parts(tmp_path)
    trainer.load(tmp_path / "killed")
    done = trainer._state.batches
    assert done >= 13
    trainer.fit(train, epochs=done // 10 + 2)
    reference, other, loader = parts(tmp_path, name="whole")
    reference.fit(loader, epochs=done // 10 + 2)
    for name, value in other.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert not [p for p in (tmp_path / "killed" / "checkpoints").iterdir() if p.name.startswith(".")]


def test_without_a_run_dir_loading_writes_nothing(build, tmp_path):
    first = build(run_dir=tmp_path)
    first.trainer.fit(first.train)
    before = sorted(p.name for p in first.trainer.run_path.rglob("*"))
    other = build()
    other.trainer.load(first.trainer.run_path)
    other.trainer.fit(other.train, epochs=2)
    assert sorted(p.name for p in first.trainer.run_path.rglob("*")) == before
    assert other.trainer.run_path is None
