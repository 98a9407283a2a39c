"""A run that dies in the middle of an epoch, and one that goes on from its last checkpoint to the same bits."""

from __future__ import annotations

import tempfile

import torch
from torch import nn

from convoy import Pipelined, Trainer, open_data
from convoy.models import build


def build_all(folder: str, name: str, callbacks=()) -> tuple[nn.Module, Trainer]:
    """Model and trainer, everything anew, as in a new process."""
    model = build("lenet5", classes=10, channels=1, image_size=28, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    options = {"run_dir": folder, "name": name, "save_every": 25, "callbacks": callbacks}
    return model, Trainer(model, nn.CrossEntropyLoss(), optimizer, strategy=Pipelined(cuts=["conv2"]), **options)


def power_cut(event) -> None:
    if event.kind == "step" and event.batch == 60:
        raise RuntimeError("power cut")


def fit(trainer: Trainer):
    data = open_data("digits", batch_size=32)  # 45 batches an epoch
    return trainer.fit(data.train, data.validation, epochs=3)


with tempfile.TemporaryDirectory() as place:
    _, broken = build_all(place, "broken", [power_cut])
    try:
        fit(broken)
    except RuntimeError as error:
        checkpoints = sorted(path.name for path in (broken.run_path / "checkpoints").iterdir())
        print(f"{error} after batch 60; checkpoints after {', '.join(checkpoints)} batches")
    mine, again = build_all(place, "again")
    again.load(broken.run_path)
    print(fit(again))

    theirs, unbroken = build_all(place, "unbroken")
    fit(unbroken)
    pairs = zip(mine.state_dict().values(), theirs.state_dict().values(), strict=True)
    print("same bits as a run that was not broken:", all(torch.equal(a, b) for a, b in pairs))
