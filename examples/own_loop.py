"""A pipeline inside a training loop of one's own: no Trainer, no run folder."""

from __future__ import annotations

import torch
from torch import nn

from convoy import Pipelined, open_data
from convoy.models import build

EPOCHS = 6


def accuracy(model: nn.Module, batches) -> float:
    model.eval()
    right, seen = 0, 0
    with torch.no_grad():
        for x, y in batches:
            right += int((model(x).argmax(1) == y).sum())
            seen += len(y)
    model.train()
    return right / seen


def main() -> None:
    data = open_data("digits", batch_size=32)
    model = build("lenet5", classes=10, channels=1, image_size=28, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(data.train))

    with Pipelined(stages=2).bind(model, nn.CrossEntropyLoss(), optimizer) as step:
        for epoch in range(1, EPOCHS + 1):
            results = []
            for x, y in data.train:
                results.append(step(x, y))  # of the batch before this one; None while the pipeline fills
                schedule.step()  # a batch is updated with the rate in force when it entered, at every stage
            results += step.drain()  # nothing is in flight now: the weights are consistent
            losses = [float(result.loss) for result in results if result is not None]
            share = accuracy(model, data.validation)
            print(f"epoch {epoch}: loss {sum(losses) / len(losses):.4f}, {share:.1%} of the validation images")
        plan = step.plan()
    assert plan is not None
    print(plan.table())


if __name__ == "__main__":
    main()
