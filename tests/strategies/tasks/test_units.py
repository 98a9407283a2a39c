"""Which nodes become a unit by rule and which run whole, and what shares weights."""

import torch
import torch.nn.functional as F
from torch import nn

from convoy.graph.capture import capture
from convoy.models import build
from convoy.strategies.tasks.units import owners, units_of


def made(net, size=8, channels=3):
    return units_of(capture(net, (torch.randn(2, channels, size, size),)))


class Forward(nn.Module):
    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.function(self, x)


def test_published_networks_have_a_rule_for_every_node():
    for name, size in (("resnet20", 16), ("vgg16", 32), ("alexnet", 32)):
        units = made(build(name, seed=0, image_size=size), size)
        assert units.without_rule == ()
        assert {u.name for u in units.units} == set(units.active)


def test_numbers_and_weights_are_part_of_those_who_use_them():
    def forward(self, x):
        x = F.conv2d(x, self.conv.weight, stride=2)
        return F.elu(x.view(x.shape[0] // 1, -1) * self.conv.bias[0])

    units = made(Forward(forward, conv=nn.Conv2d(3, 4, 3)))
    assert next(u.bound.rule.kind if u.bound else "whole" for u in units.units) == "conv2d"
    assert all(name in units.specs for u in units.units for name in (*u.inputs, *u.outputs))


def test_several_results_stay_with_who_takes_them_apart():
    def forward(self, x):
        a, b = self.conv(x).chunk(2, 1)
        return a.relu() + b

    units = made(Forward(forward, conv=nn.Conv2d(3, 4, 3)))
    (whole,) = [u for u in units.units if u.segment]
    assert {n.kind for n in whole.segment.nodes} >= {"chunk", "getitem"}
    assert next(u.name for u in units.units if u.bound) == "conv"


def test_a_write_seen_through_a_view_stays_with_the_view():
    def forward(self, x):
        x = self.conv(x)
        part = x[:, :2]
        part += 1
        return x.relu()

    units = made(Forward(forward, conv=nn.Conv2d(3, 4, 3)))
    (whole,) = [u for u in units.units if u.segment]
    assert {"conv", "getitem"} <= {n.name for n in whole.segment.nodes}


def test_dead_ends_are_left_out_but_not_their_statistics():
    def forward(self, x):
        self.norm(x)
        self.conv(x)
        return self.head(x)

    units = made(Forward(forward, norm=nn.BatchNorm2d(3), conv=nn.Conv2d(3, 4, 3), head=nn.Conv2d(3, 2, 3)))
    assert [u.name for u in units.units] == ["norm", "head"]
    assert units.active == {"head"}


def test_weights_have_the_name_of_their_first_user():
    def forward(self, x):
        return self.b(self.a(self.c(self.a(x))))

    shared = nn.Conv2d(3, 3, 3)
    other = nn.Conv2d(3, 3, 3)
    other.bias = shared.bias
    net = Forward(forward, a=shared, b=other, c=nn.Conv2d(3, 3, 3))
    units = made(net, size=16)
    names = owners(units.units, "parameters")
    assert names == {"a": "a", "c": "c", "a_1": "a", "b": "a"}


def test_weights_that_a_later_unit_ties_together_have_one_owner():
    def forward(self, x):
        return self.c(self.b(self.a(x)))

    a, b, c = (nn.Conv2d(3, 3, 3) for _ in range(3))
    c.weight, c.bias = a.weight, b.bias
    units = made(Forward(forward, a=a, b=b, c=c), size=16)
    assert set(owners(units.units, "parameters").values()) == {"a"}
