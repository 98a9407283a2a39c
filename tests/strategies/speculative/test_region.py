"""Where to cut: balanced by operations, by name, by layer; and what is refused, with the next step."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convoy.errors import ModelError, OptionError
from convoy.graph.capture import capture
from convoy.models import build
from convoy.strategies.speculative import Speculative
from convoy.strategies.speculative.faithful import true_from
from convoy.strategies.speculative.region import cut_region, unit_flops
from convoy.strategies.tasks.units import Units, units_of


def units(model: nn.Module, size: int = 32) -> Units:
    return units_of(capture(model, (torch.randn(4, 3, size, size),)))


@pytest.mark.parametrize("name", ["resnet20", "vgg16"])
def test_the_balanced_cut_is_next_to_half_of_the_operations(name: str) -> None:
    found = units(build(name, seed=0))
    flops, region = unit_flops(found), cut_region(found, None)
    share = sum(sum(flops[u]) for u in region.inside) / sum(map(sum, flops.values()))
    assert 0.35 < share < 0.65
    assert cut_region(found, region.cut) == region


def test_cut_by_layer_and_by_module_are_the_same() -> None:
    found = units(build("resnet20", seed=0))
    assert cut_region(found, 7) == cut_region(found, cut_region(found, 7).cut)


def test_the_first_layer_has_no_input_gradient() -> None:
    flops = unit_flops(units(build("resnet20", seed=0)))
    (first, second, *_) = (f for f in flops.values() if f[2] > 1e6)
    assert first[1] == 0 and second[1] == second[2]


class Two(nn.Module):
    """Two trained tensors cross before ``b``."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3 if i == 0 else 4, 4, 3, padding=1) for i in range(3))
        self.fc = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        y = F.gelu(x)
        z: torch.Tensor = self.fc((self.c(self.b(y) + x)).mean((2, 3)))
        return z


def test_cuts_that_cannot_be() -> None:
    found = units(Two(), 8)
    with pytest.raises(ModelError, match="2 trained tensors cross the cut before b") as caught:
        cut_region(found, "b")
    assert "such as before" in str(caught.value.hint)
    whole = units(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softplus(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 5)), 8
    )
    with pytest.raises(ModelError, match=r"layer 1 of kind other .*cannot be speculated") as caught:
        cut_region(whole, "2")
    assert "before 1" in str(caught.value.hint)
    with pytest.raises(ModelError, match="runs no module 'nonsense'"):
        cut_region(whole, "nonsense")


@pytest.mark.parametrize("name", ["resnet20", "vgg16"])
def test_true_outcomes_are_there_when_the_error_comes(name: str) -> None:
    """With operations as time: no layer is asked for an outcome that its forward pass does not have yet."""
    found = units(build(name, seed=0))
    flops = unit_flops(found)
    _, remembered = true_from(found, flops, None)
    clock, done = 0, {}
    for unit in found.units:
        clock += flops[unit.name][0]
        done[unit.name] = clock
    arrival, waits = 0, []
    for unit in reversed(found.units):
        if unit.name not in remembered and unit.name in found.active:
            assert done[unit.name] <= arrival
        else:
            waits.append(done[unit.name] > arrival)
        arrival += flops[unit.name][1]
    assert any(waits) and 0 < len(remembered) < len(found.active)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"form": "cutt"}, "form is 'cutt'"), ({"threshold": -1}, "threshold is -1"), ({"warmup": 0}, "warmup is 0"),
        ({"threshold": float("nan")}, "threshold is nan"), ({"memory": 0}, "memory is 0"),
        ({"form": "faithful", "predictor": "linear"}, "'linear' is for the cut form"), ({"engine": "ray"}, "engine is"),
        ({"controller": "sometimes"}, "controller is 'sometimes'"), ({"predictor": "mean"}, "'mean' is unknown"),
        ({"threshold": "a"}, "threshold is 'a'"), ({"threshold": True}, "threshold is True"),
        ({"warmup": "a"}, "warmup is 'a'"), ({"warmup": 2.5}, "warmup is 2.5"), ({"warmup": True}, "warmup is True"),
        ({"memory": "much"}, "memory is 'much'"), ({"memory": "0MB"}, "memory is 0"),
        ({"memory": 0.5}, "memory is 0.5"), ({"memory": None}, "memory is None"),
        ({"controller": 5}, "controller is 5"), ({"predictor": 3}, "predictor is 3"), ({"cut": 1.5}, "cut is 1.5"),
        ({"cut": ["c1"]}, "cut is .'c1'"), ({"cut": True}, "cut is True"),
        ({"cut": ""}, "cut is ''"), ({"form": ["cut"]}, "form is "),
        ({"predictor": "random:0.5", "threshold": 0.3}, "threshold is 0.3, but predictor 'random:0.5' accepts"),
        ({"predictor": "unbiased:zero:0.5", "threshold": 0}, "threshold is 0, but predictor 'unbiased:zero:0.5'"),
        ({"predictor": "dithered:zero", "threshold": float("inf")}, "threshold is inf, and predictor 'dithered:zero'"),
        ({"form": "faithful", "predictor": "dithered:label-last"}, "'dithered:label-last' is for the cut form"),
        ({"form": "faithful", "predictor": "random:0.5"}, "'random:0.5' is for the cut form"),
        ({"controller": "auto:0.7,0.5,1"}, "every mini-batch a probe"),
    ],
)  # fmt: skip
def test_fields_that_make_no_sense(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said) as caught:
        Speculative(**fields)
    assert caught.value.hint


def test_where_chance_alone_accepts_there_is_no_threshold(train: Any, images: Any) -> None:
    strategy = Speculative(predictor="random:0.5", warmup=1, controller="always")
    assert strategy.threshold is None and strategy.limit == float("inf") and "smaller share" in str(strategy.suspects)
    plan = train(strategy, "plain", images((4,))).plan
    assert plan.threshold is None and "no threshold" in plan.table()
    assert type(plan).from_dict(plan.to_dict()) == plan


def test_speculation_is_suspected_only_when_there_was_some(images: Any) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(96, 5))
    strategy = Speculative(predictor="random:0.5", warmup=2, controller="always")
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    named = []
    with strategy.bind(model, torch.nn.functional.cross_entropy, optimizer) as step:
        for x, y in images((4,) * 4):
            named.append(step.suspects is not None)
            step(x, y)
    assert named == [False, False, False, True]


@pytest.mark.parametrize("value", [1, np.float32(0.5), Fraction(1, 2)])
def test_thresholds_of_any_real_type_become_floats(value: Any) -> None:
    assert type(Speculative(threshold=value).threshold) is float and Speculative(threshold=value).limit == float(value)


@pytest.mark.parametrize(
    ("memory", "expected"), [("256MB", 256_000_000), ("1.5 gb", 1_500_000_000), ("700", 700), (1e6, 1_000_000), (5, 5)]
)
def test_memory_is_taken_as_a_number_or_a_size(memory: Any, expected: int) -> None:
    assert Speculative(memory=memory) == Speculative(memory=expected)
    assert Speculative(memory=memory).memory_bytes == expected


@pytest.mark.parametrize(
    ("cut", "said", "hint"),
    [
        (0, "no cut after layer 0", "numbered 1 to 4, and the last place for a cut is after layer 3"),
        (99, "no cut after layer 99", "numbered 1 to 4"),
        ("nope", "runs no module 'nope'", "the modules are 'a', 'b', 'c', 'fc'"),
        ("fcc", "runs no module 'fcc'", "did you mean 'fc' or 'c'?"),
    ],
)
def test_a_cut_that_is_no_place_is_told_the_places(cut: str | int, said: str, hint: str) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        cut_region(units(Two(), 8), cut)
    assert hint in str(caught.value.hint) and "pipeline" not in str(caught.value.hint)


def test_memory_that_does_not_suffice(train: Any, images: Any) -> None:
    with pytest.raises(OptionError, match=r"predictor label-mean holds .* and memory is 1.0 kB"):
        train(Speculative(cut=1, predictor="label-mean", memory=1000), "plain", images((4,)))


@pytest.mark.parametrize(
    ("fields", "form", "predictor"),
    [
        ({}, "faithful", "dithered:zero"),
        ({"predictor": "label-last"}, "faithful", "label-last"),
        ({"predictor": "linear"}, "cut", "linear"),
        ({"predictor": "random:0.5"}, "cut", "random:0.5"),
        ({"cut": 2}, "cut", "dithered:zero"),
        ({"form": "cut"}, "cut", "dithered:zero"),
    ],
)
def test_the_form_follows_from_what_is_given(fields: dict[str, Any], form: str, predictor: str) -> None:
    made = Speculative(**fields)
    assert (made.form, made.predictor) == (form, predictor)
