"""Pretrained weights, frozen layers and a new head.

First a network learns the digits 0 to 4; its weights are written as a file. A second network takes them, keeps
its convolutions as they are, and learns the digits 5 to 9 with what is left.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from convoy import Pipelined, Trainer, open_data
from convoy.models import build


def digits(low: int) -> list[DataLoader]:
    """Training and validation images of the five digits from ``low`` on."""
    loaders = []
    for part in (lambda d: d.train, lambda d: d.validation):
        x, y = next(iter(part(open_data("digits", batch_size=1500))))
        chosen = (y >= low) & (y < low + 5)
        data = TensorDataset(x[chosen], y[chosen] - low)
        loaders.append(DataLoader(data, batch_size=32, shuffle=True, generator=torch.Generator().manual_seed(0)))
    return loaders


def train(model: nn.Module, low: int, cuts: list[str], epochs: int) -> None:
    wanted = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(wanted, lr=0.02, momentum=0.9)
    train_part, validation = digits(low)
    trainer = Trainer(model, nn.CrossEntropyLoss(), optimizer, strategy=Pipelined(cuts=cuts))
    print(f"digits {low} to {low + 4}", trainer.fit(train_part, validation, epochs=epochs), sep="\n")


with tempfile.TemporaryDirectory() as place:
    file = Path(place) / "pretrained.safetensors"
    first = build("lenet5", classes=5, channels=1, image_size=28, seed=0)
    train(first, low=0, cuts=["conv2"], epochs=4)
    # Training lays weights out channels last, and safetensors wants them row by row.
    save_file({name: value.contiguous() for name, value in first.state_dict().items()}, file)

    model = build("lenet5", classes=5, channels=1, image_size=28, seed=1)
    model.load_state_dict(load_file(file))
for layer in (model.conv1, model.conv2):
    layer.requires_grad_(False)  # stage 1 has nothing to train now, so it only runs forward
model.fc3.reset_parameters()
train(model, low=5, cuts=["fc1"], epochs=4)
print("the convolutions are as they were:", torch.equal(model.conv1.weight, first.conv1.weight))
