"""Into how many slices a mini-batch is cut, and running statistics beside slices."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from convoy.graph.capture import capture
from convoy.models import build
from convoy.strategies.base import Settings
from convoy.strategies.tasks.step import TaskStep
from convoy.strategies.tasks.tiles import slices
from convoy.strategies.tasks.units import Units, units_of


def units(name: str, batch: int) -> Units:
    return units_of(capture(build(name, channels=3, image_size=32), (torch.zeros(batch, 3, 32, 32),)))


def test_small_layers_are_cut_into_fewer_slices_than_large_ones() -> None:
    assert slices(units("resnet20", 32), 2, 32) == 2
    assert slices(units("resnet20", 128), 2, 128) == 4
    assert slices(units("vgg16", 32), 2, 32) == 4


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 8])
def test_slices_are_a_multiple_of_the_workers_or_one(workers: int) -> None:
    found = slices(units("vgg16", 16), workers, 16)
    assert found == 1 or (found % workers == 0 and found <= 16)
    assert (found == 1) == (workers == 1)


def test_a_batch_too_small_for_the_workers_stays_whole() -> None:
    assert slices(units("resnet20", 3), 4, 3) == 1


class Twice(nn.Module):
    """One BatchNorm layer that is used twice, and one of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.own, self.head = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.second(torch.relu(self.norm(self.first(x)))))
        return self.head(self.own(x).mean((2, 3)))


def test_running_statistics_are_those_of_the_plain_loop() -> None:
    torch.manual_seed(0)
    plain = Twice()
    ours = copy.deepcopy(plain)
    x, y = torch.randn(3, 8, 3, 8, 8) * 4 + 1, torch.arange(8) % 2
    by_hand = torch.optim.SGD(plain.parameters(), lr=0.05)
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.05)
    with TaskStep(ours, nn.functional.cross_entropy, optimizer, Settings(threads=2), None, tiles=2) as step:
        for batch in x:
            by_hand.zero_grad()
            nn.functional.cross_entropy(plain(batch), y).backward()
            by_hand.step()
            step(batch, y)
    for name, expected in plain.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), expected, rtol=1e-4, atol=1e-5)
    assert int(ours.norm.num_batches_tracked) == 6
