import math
import sys
import threading

import pytest

from convoy.errors import MachineError, OptionError
from convoy.events.event import Event
from convoy.events.tensorboard import TensorBoard, scalars


def step(batch, **data):
    return Event("step", "step", batch=batch, data={"epoch": 1, "index": batch, "loss": 0.5, "lr": 0.1, **data})


def epoch(number, batch, **data):
    return Event("epoch", f"epoch {number}", batch=batch, data={"epoch": number, "train_loss": 0.25, **data})


def read(folder):
    """Tag → [(step, value)] as TensorBoard itself reads it."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = reader.EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    util = pytest.importorskip("tensorboard.util.tensor_util")
    return {
        tag: [(one.step, float(util.make_ndarray(one.tensor_proto))) for one in found.Tensors(tag)]
        for tag in found.Tags()["tensors"]
    }


def test_steps_and_epochs_are_scalars_over_mini_batches(tmp_path):
    pytest.importorskip("tensorboard")
    with TensorBoard(tmp_path / "logs") as board:
        for batch in range(3):
            board(step(batch, loss=1 / (batch + 1)))
        board(epoch(1, 2, validation_accuracy=0.75, busy={"worker 1": 0.5}, seconds=2.0))
        board(Event("action", "F1.0", 0, 1, "worker 1", 0))
    assert board.error is None
    found = read(tmp_path / "logs")
    assert found["train/loss"] == [(0, 1.0), (1, 0.5), (2, pytest.approx(1 / 3))]
    assert found["validation/accuracy"] == [(2, 0.75)]
    assert found["busy/worker 1"] == [(2, 0.5)]
    assert sorted(found) == [
        "busy/worker 1", "speed/epoch_seconds", "train/epoch_loss", "train/loss", "train/lr", "validation/accuracy",
    ]  # fmt: skip


def test_what_a_strategy_reports_is_there_and_what_is_no_number_is_not():
    event = step(0, accepted=3, deep={"a": 1, "b": "x"}, note="x", flag=True, samples=32, loss=math.nan, lr=None)
    assert list(scalars(event)) == [("strategy/accepted", 3.0), ("strategy/deep/a", 1.0)]


def test_many_threads_may_tell_it(tmp_path):
    pytest.importorskip("tensorboard")
    with TensorBoard(tmp_path) as board:
        threads = [threading.Thread(target=lambda: [board(step(b)) for b in range(50)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(read(tmp_path)["train/loss"]) == 200


def test_it_may_be_closed_twice_and_told_more(tmp_path):
    pytest.importorskip("tensorboard")
    board = TensorBoard(tmp_path)
    board.close()
    board(step(0))
    board.close()


def test_without_the_extra_there_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.summary", None)
    with pytest.raises(OptionError, match="TensorBoard is not installed") as caught:
        TensorBoard(tmp_path)
    assert "convoy-train[tensorboard]" in caught.value.hint


def test_a_folder_that_cannot_be_written(tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="cannot write"):
        TensorBoard(tmp_path / "file" / "logs")
