"""Measured times of the host's tasks: made on a device, kept in a file, used in place of the roofline."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from convoy.errors import DataError
from convoy.hardware.description import load_hardware
from convoy.hardware.profile import Profile, calibrate, load_profile, write_profile
from convoy.hardware.step import simulate, tasks_of


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(16 * 16, 4)
    )


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_every_task_is_measured(device):
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = calibrate(model, 2, (3, 8, 8), device, element_bytes=4, repeats=2)
    keys = {task.key for segment in tasks_of(model, 2, (3, 8, 8)).segments for task in segment.host}
    assert set(found.seconds) == keys and all(seconds > 0 for seconds in found.seconds.values())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_simulated_computing_takes_the_measured_time(tmp_path):
    step = tasks_of(net(), 2, (3, 8, 8))
    keys = [task.key for segment in step.segments for task in segment.host]
    profile = Profile("test", "float16", 2, {key: 1e-3 * (n + 1) for n, key in enumerate(keys)})
    write_profile(profile, tmp_path / "p.json")
    assert load_profile(tmp_path / "p.json") == profile
    hardware = replace(load_hardware("v100-pim4"), profile=profile)
    total = sum(profile.seconds.values())
    for turns in ("serial", "planned"):  # planned moves tasks, in parts too
        found = simulate(step, hardware, turns=turns)
        assert found.seconds == pytest.approx(total, rel=0.001)


def test_a_task_that_was_not_measured_is_named(tmp_path):
    hardware = replace(load_hardware("v100-pim4"), profile=Profile("other", "float16", 2, {}))
    with pytest.raises(DataError, match=r"no time for 0 .conv2d forward"):
        simulate(net(), hardware, 2, image=(3, 8, 8), turns="serial")


@pytest.mark.parametrize(
    "text", ["", "{}", '{"format": 2, "seconds": {}}', '{"format": 1, "seconds": {"a": "x"}}', "[1]"]
)
def test_files_that_are_none(tmp_path, text):
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(DataError, match="is no profile"):
        load_profile(path)
    with pytest.raises(DataError, match="cannot be read"):
        load_profile(tmp_path / "none.json")
