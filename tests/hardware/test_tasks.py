"""The tasks of a training step: operations, elements, and what belongs inside which layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from convoy.graph.capture import capture
from convoy.hardware.tasks import Step, training_step
from convoy.models import build


def step_of(model: nn.Module, *shape: int) -> Step:
    return training_step(capture(model, (torch.empty(*shape),)))


@pytest.fixture(scope="module")
def resnet50() -> Step:
    return step_of(build("resnet50", classes=1000, image_size=224), 2, 3, 224, 224)


def test_operations_of_resnet50(resnet50):
    """4.09 billion multiply-adds an image forward; the same for each gradient, but none for the images."""
    by_phase = {phase: 0 for phase in ("forward", "input_grad", "weight_grad")}
    for segment in resnet50.segments:
        for task in segment.host:
            by_phase[task.phase] += task.flops
    assert by_phase["forward"] == pytest.approx(2 * 2 * 4.09e9, rel=0.002)
    assert by_phase["weight_grad"] == by_phase["forward"]
    first = 2 * 2 * 112 * 112 * 64 * 3 * 7 * 7
    assert by_phase["input_grad"] == by_phase["forward"] - first


def test_every_layer_is_there_once_per_phase(resnet50):
    names = [(task.name, task.phase) for segment in resnet50.segments for task in segment.host]
    assert len(names) == len(set(names)) == 54 * 3 - 1
    assert [s.phase for s in resnet50.segments[: resnet50.forward]] == ["forward"] * 54
    norms = [t for s in resnet50.segments for t in s.units if t.kind == "batch_norm"]
    assert len(norms) == 2 * 53
    assert sum(len(t.kernels) for t in norms) == 4 * 53


def test_what_a_small_net_consists_of():
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 20, 1), nn.ReLU(), nn.Flatten(), nn.Linear(20 * 16, 5),
    )  # fmt: skip
    step = step_of(model, 4, 3, 8, 8)
    one, two, three, last, second, first = step.segments
    conv = one.host[0]
    assert (conv.flops, conv.reads, conv.weights, conv.writes, conv.channels) == (
        2 * 27 * 4 * 16 * 64, 4 * 3 * 64, 27 * 16, 4 * 16 * 64, 16,
    )  # fmt: skip
    assert [(t.kind, [k.name for k, _ in t.kernels]) for t in one.units] == [
        ("batch_norm", ["bn_statistics", "bn_relu"]),
        ("max_pool", ["max_pool 4"]),
    ]
    assert one.units[0].host_elements == 5 * 4 * 16 * 64  # BatchNorm 3, ReLU 2
    assert one.units[0].kernels[0][1] == 4 * 16 * 64 and one.units[1].kernels[0][1] == 4 * 16 * 16
    assert two.units[0].kernels[0][1] == 4 * 32 * 16  # 20 channels lie in two blocks of 16 lanes
    assert three.units == [] and [t.phase for t in last.host] == ["input_grad", "weight_grad"]
    assert [t.kind for t in last.units] == ["relu"] and [t.kind for t in second.units] == [
        "max_pool",
        "relu",
        "batch_norm",
    ]
    assert [t.phase for t in first.host] == ["weight_grad"] and first.units == []


def test_branches_add_their_gradients_and_new_channels_are_told_from_old():
    dense = step_of(build("densenet121", classes=10, image_size=64), 1, 3, 64, 64)
    cats = [t for s in dense.segments[: dense.forward] for t in s.units if t.kind == "cat"]
    assert cats[0].fresh == pytest.approx(32 / 96) and cats[1].fresh == pytest.approx(32 / 128)
    res = step_of(build("resnet18", classes=10, image_size=32), 1, 3, 32, 32)
    sums = [t for s in res.segments for t in s.units if t.kind == "accumulate"]
    assert len(sums) == 8  # one for each block, whose input goes two ways


def test_frozen_layers_have_no_gradients():
    model = build("resnet18", classes=10, image_size=32)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith("fc")
    step = step_of(model, 1, 3, 32, 32)
    assert [(t.name, t.phase) for s in step.segments[step.forward :] for t in s.host] == [("fc", "weight_grad")]
    assert not any(s.units for s in step.segments[step.forward :])


def test_what_has_no_kernel_stays_with_the_host_and_is_named():
    step = step_of(nn.Sequential(nn.Conv2d(3, 8, 1), nn.GELU(), nn.Conv2d(8, 8, 1)), 1, 3, 8, 8)
    assert any("gelu" in note and "stays with the host" in note for note in step.notes)
    kinds = [t.kind for s in step.segments for t in s.host]
    assert kinds.count("gelu") == 2 and kinds.count("conv2d") == 5


def test_depthwise_convolutions_need_their_own_inputs_only():
    step = step_of(build("mobilenet-v2", classes=10, image_size=32), 1, 3, 32, 32)
    own = {t.name for s in step.segments for t in s.host if t.own_inputs}
    assert len(own) == 17 and all(name.startswith("features") for name in own)
