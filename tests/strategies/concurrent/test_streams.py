"""On streams, as far as a machine without a GPU allows: on the recorder of the engine's own tests."""

import importlib.util
from pathlib import Path

import pytest
import torch

from convoy.engines.streams import StreamsEngine
from convoy.schedule.recurring import predecessors
from convoy.strategies.concurrent import step as steps
from convoy.strategies.concurrent.schedule import CONV, NONCONV

_PATH = Path(__file__).parents[2] / "engines" / "test_streams.py"
_SPEC = importlib.util.spec_from_file_location("convoy_test_streams", _PATH)
recorder = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(recorder)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("placement", ["kind", "planned"])
def test_every_dependency_between_the_streams_is_a_wait(
    make, images, concurrent, differing, monkeypatch, groups, placement
):
    before, place = {}, {}

    class Watching(StreamsEngine):
        def _carry_out(self, lane, action):
            super()._carry_out(lane, action)
            stream = self._streams[lane]
            before[action], place[action] = dict(stream.seen), (lane, stream.work)

    monkeypatch.setattr(steps, "StreamsEngine", Watching)
    model, data = make("dense", dropout=0.3), images([4, 4], torch.float32)
    device = recorder.Recorder()
    got, step = concurrent(model, data, groups, placement, engine="streams", accelerator=device, keep_schedule=True)
    expected, _ = concurrent(model, data, groups, placement, engine="inline")
    assert differing(got, expected) == []

    actions = [action for _, action in step.schedule]
    checked = 0
    for action, earlier in zip(actions, predecessors(actions), strict=True):
        lane, _ = place[action]
        for other in (actions[n] for n in earlier):
            where, work = place[other]
            if where != lane:
                assert before[action].get(where, 0) >= work, f"{action.label} does not wait for {other.label}"
                checked += 1
    assert checked > 40
    assert {name for _, name in device.kept} == {CONV, NONCONV}, "memory that crosses streams is kept"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_two_streams_of_a_gpu(make, images, plain, concurrent):
    model, data = make("vgg").double(), images([4, 4])
    expected = plain(model, data)
    got, _ = concurrent(model, data, engine="auto", device="cuda")
    for key, value in got.items():
        torch.testing.assert_close(value.cpu(), expected[key], rtol=1e-9, atol=1e-10)
