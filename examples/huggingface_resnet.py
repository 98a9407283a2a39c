"""A Hugging Face model, built from its configuration, as a pipeline: dictionaries in, an output object back."""

from __future__ import annotations

import sys

import torch
from torch import nn

from convoy import Pipelined, Trainer, open_data

try:
    from transformers import ResNetConfig, ResNetForImageClassification
except ImportError:
    print("skipped: transformers is not installed (pip install transformers)")
    sys.exit(0)


class AsDictionaries:
    """Batches as data sets of Hugging Face give them."""

    def __init__(self, loader) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self):
        return ({"pixel_values": x, "labels": y} for x, y in self.loader)


def loss_of(output, batch) -> torch.Tensor:
    """A batch that is a dictionary goes to the model as keywords, and to the loss as the target."""
    return nn.functional.cross_entropy(output.logits, batch["labels"])


data = open_data("digits", batch_size=32, limit=640)
torch.manual_seed(0)
config = ResNetConfig(
    num_channels=1, embedding_size=16, hidden_sizes=[16, 32, 64], depths=[1, 1, 1], layer_type="basic", num_labels=10
)
model = ResNetForImageClassification(config)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
trainer = Trainer(model, loss_of, optimizer, strategy=Pipelined(stages=2))
history = trainer.fit(AsDictionaries(data.train), AsDictionaries(data.validation), epochs=4)
print(f"{type(model).__name__}, {sum(p.numel() for p in model.parameters()):,} weights", history, sep="\n")
