import io
import re

from convoy.events.event import Event
from convoy.events.progress import Progress, clock_time


class Terminal(io.StringIO):
    def isatty(self):
        return True


def step(epoch, index, loss=0.5, correct=3, samples=4, in_flight=0):
    data = {"epoch": epoch, "index": index, "loss": loss, "correct": correct, "samples": samples, "lr": 0.1}
    return Event("step", "step", batch=index, data={**data, "in_flight": in_flight})


def epoch(number, **more):
    data = {"epoch": number, "train_loss": 0.25, "train_accuracy": 0.75, "samples_per_second": 100.0, "seconds": 2.0}
    return Event("epoch", f"epoch {number}", data={**data, **more})


BEGIN = Event("run", "begin", data={"model": "LeNet5", "strategy": "pipelined", "epochs": 2, "batches_per_epoch": 10})


def test_plain_lines_where_there_is_no_terminal():
    out, now = io.StringIO(), [0.0]
    progress = Progress(out, clock=lambda: now[0], plain_seconds=5.0)
    progress(BEGIN)
    for index in range(10):
        now[0] += 1.0
        progress(step(1, index, in_flight=2))
    progress(epoch(1, validation_loss=0.5, validation_accuracy=0.625))
    progress(Event("warning", "w", data={"message": "something odd"}))
    progress(Event("run", "end"))
    assert out.getvalue().splitlines() == [
        "LeNet5 · pipelined",
        "epoch 1/2 · batch 5/10 · loss 0.5000 · accuracy 75.00% · 4 samples/s · in flight 2 · 0:15 left",
        "epoch 1/2 · batch 10/10 · loss 0.5000 · accuracy 75.00% · 4 samples/s · in flight 2 · 0:10 left",
        "epoch 1/2 · loss 0.2500 · accuracy 75.00% · validation 0.5000, 62.50% · 100 samples/s · 2.0 s",
        "warning: something odd",
    ]
    assert "\x1b" not in out.getvalue()


def test_sums_begin_anew_with_an_epoch_and_a_resumed_one_in_its_middle():
    out, now = io.StringIO(), [0.0]
    progress = Progress(out, clock=lambda: now[0], plain_seconds=0.0)
    progress(BEGIN)
    progress(step(1, 7, loss=4.0, correct=None))
    progress(step(2, 0, loss=1.0))
    lines = out.getvalue().splitlines()
    assert lines[1].startswith("epoch 1/2 · batch 8/10 · loss 4.0000 · 0 samples/s")
    assert lines[2].startswith("epoch 2/2 · batch 1/10 · loss 1.0000 · accuracy 75.00%")


def test_what_was_speculated_is_told_while_it_runs_and_with_the_epoch():
    out = io.StringIO()
    progress = Progress(out, plain_seconds=0.0)
    progress(BEGIN)
    for index, measures in enumerate([{}, {"accepted": 0.5}, {"accepted": 1.0, "agreement": 0.614, "time_saved": 0.2}]):
        event = step(1, index)
        progress(Event("step", "step", batch=index, data={**event.data, **measures}))
    progress(epoch(1))
    lines = out.getvalue().splitlines()
    assert "accepted" not in lines[1] and " · accepted 50%" in lines[2] and "agreement" not in lines[2]
    assert " · accepted 75% · agreement 0.61 · time saved 20%" in lines[3]
    assert lines[4].endswith(" s · accepted 75% · agreement 0.61 · time saved 20%")


def test_a_terminal_gets_a_live_bar_and_lasting_lines(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out, now = Terminal(), [0.0]
    progress = Progress(out, clock=lambda: now[0])
    progress(BEGIN)
    for index in range(10):
        now[0] += 0.3
        progress(step(1, index))
    progress(epoch(1))
    progress(Event("run", "interrupted", batch=10))
    text = out.getvalue()
    assert "\x1b[" in text
    assert "epoch 1/2 · loss 0.2500" in text and "samples/s" in text and "interrupted at batch 10" in text


def test_no_color_is_honoured(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")

    def colours(no_color):
        if no_color:
            monkeypatch.setenv("NO_COLOR", "1")
        else:
            monkeypatch.delenv("NO_COLOR", raising=False)
        out, now = Terminal(), [0.0]
        progress = Progress(out, clock=lambda: now[0])
        progress(BEGIN)
        now[0] += 1.0
        progress(step(1, 0))
        progress.close()
        return re.search(r"\x1b\[(\d+;)*[39]\d", out.getvalue()) is not None

    assert colours(False) and not colours(True)


def test_an_unknown_number_of_batches_and_no_accuracy():
    out = io.StringIO()
    progress = Progress(out, plain_seconds=0.0)
    progress(Event("run", "begin", data={"model": "m", "strategy": "s", "epochs": 1, "batches_per_epoch": None}))
    progress(step(1, 0, loss=None, correct=None))
    assert "left" not in out.getvalue() and "accuracy" not in out.getvalue()


def test_clock_time():
    assert [clock_time(s) for s in (0, 59.6, 75, 3700)] == ["0:00", "1:00", "1:15", "1:01:40"]
