"""A cut has a name that leads back to it, so that an automatic choice can be written down and taken up again."""

import pytest
import torch
from torch import nn

from convoy.errors import ModelError
from convoy.graph.capture import capture
from convoy.graph.split import allowed_cuts, cut_at_module, cut_name


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.shared = nn.ReLU()

    def forward(self, x):
        return torch.relu(self.shared(self.conv(self.shared(x))) + x) + x


class Misnamed(nn.Module):
    """A function whose node gets the name that a later module has."""

    def __init__(self):
        super().__init__()
        self.relu = nn.Linear(3, 3)

    def forward(self, x):
        return self.relu(torch.relu(x * 2)) + 1


@pytest.mark.parametrize(
    ("model", "x"),
    [(nn.Sequential(Block(), Block()), torch.randn(2, 4, 5, 5)), (Misnamed(), torch.randn(2, 3))],
    ids=["shared modules and functions", "a name taken twice"],
)
def test_every_cut_has_a_name_that_leads_back(model, x):
    graph = capture(model, (x,))
    places = allowed_cuts(graph)
    assert places
    names = [cut_name(graph, place) for place in places]
    assert [cut_at_module(graph, name) for name in names] == places
    assert len(set(names)) == len(names)


def test_the_name_is_the_modules_path_where_it_begins_there():
    graph = capture(nn.Sequential(Block(), Block()), (torch.randn(2, 4, 5, 5),))
    assert cut_name(graph, cut_at_module(graph, "1.conv")) == "1.conv"


@pytest.mark.parametrize("name", ["#999", "#x", "nothing"])
def test_what_names_nothing_is_refused(name):
    graph = capture(Misnamed(), (torch.randn(2, 3),))
    with pytest.raises(ModelError, match="runs no module") as caught:
        cut_at_module(graph, name)
    assert caught.value.hint == "the modules are 'relu'"


def test_modules_are_named_in_their_order_and_not_all():
    graph = capture(nn.Sequential(*(nn.Linear(3, 3) for _ in range(12))), (torch.randn(2, 3),))
    with pytest.raises(ModelError, match="runs no module 'nope'") as caught:
        cut_at_module(graph, "nope")
    assert caught.value.hint == "the modules are '0', '1', '2', '3', '4', '5', '6', '7' and 4 more"
