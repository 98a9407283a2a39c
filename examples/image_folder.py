"""A folder of images, one sub-folder per class, and a network of one's own.

The folder is drawn here, so that the example needs no data: discs, squares and rings on a noisy ground.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import nn

from convoy import Pipelined, Trainer, open_data

SIDE = 32


def draw(kind: str, chance: random.Random) -> Image.Image:
    image = Image.frombytes("L", (SIDE, SIDE), chance.randbytes(SIDE * SIDE)).point(lambda v: v // 3).convert("RGB")
    size, left, top = chance.randint(10, 18), chance.randint(2, 12), chance.randint(2, 12)
    box, colour = (left, top, left + size, top + size), tuple(chance.randint(120, 255) for _ in range(3))
    if kind == "square":
        ImageDraw.Draw(image).rectangle(box, fill=colour)
    else:
        ImageDraw.Draw(image).ellipse(box, outline=colour, width=3, fill=colour if kind == "disc" else None)
    return image


def make_folder(folder: Path) -> None:
    chance = random.Random(0)
    for kind in ("disc", "ring", "square"):
        (folder / kind).mkdir(parents=True)
        for number in range(200):
            draw(kind, chance).save(folder / kind / f"{number:03d}.png")


def block(inputs: int, outputs: int) -> nn.Sequential:
    layers = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.MaxPool2d(2))


with tempfile.TemporaryDirectory() as place:
    make_folder(Path(place) / "shapes")
    data = open_data(f"folder:{place}/shapes", batch_size=20)  # a fifth is set aside for validation
    torch.manual_seed(0)
    model = nn.Sequential(block(3, 16), block(16, 32), block(32, 64), nn.Flatten(), nn.Linear(1024, len(data.classes)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    trainer = Trainer(model, nn.CrossEntropyLoss(), optimizer, strategy=Pipelined(stages=2), keep_best=True)
    history = trainer.fit(data.train, data.validation, epochs=4)
    print(f"classes: {', '.join(data.classes)}", history, sep="\n")
