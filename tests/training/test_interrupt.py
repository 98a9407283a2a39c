import signal
import threading

import pytest
import torch
from torch import nn

from convoy.engines.interrupts import Untouched, interruptible
from convoy.training.interrupt import Interrupt
from convoy.training.trainer import Trainer


def press():
    signal.raise_signal(signal.SIGINT)


def test_the_first_is_held_back_and_the_second_is_not():
    with Interrupt() as interrupt:
        interrupt.check()
        press()
        assert interrupt.requested
        with pytest.raises(KeyboardInterrupt):
            interrupt.check()
        with pytest.raises(KeyboardInterrupt):
            press()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_the_programs_own_stays():
    pressed = []
    before = signal.signal(signal.SIGINT, lambda *a: pressed.append(1))
    try:
        with Interrupt() as interrupt:
            press()
        assert pressed == [1] and not interrupt.requested
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_leaves_the_handler_alone():
    seen = []

    def enter():
        with Interrupt():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


def test_where_nothing_was_changed_the_first_is_not_held_back():
    with Interrupt() as interrupt:
        with pytest.raises(Untouched), interruptible():
            press()
        assert not interrupt.requested and interruptible.depth == 0
        press()
        assert interrupt.requested


def test_ctrl_c_while_the_cuts_are_measured_leaves_at_once_and_fit_may_be_called_again(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    before = [p.detach().clone() for p in model.parameters()]
    trainer = Trainer(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1), strategy="pipelined")
    batches = [(torch.randn(8, 4), torch.randint(0, 2, (8,))) for _ in range(4)]
    measured = []

    def measure(*args, **keywords):
        measured.append(1)
        press()
        raise AssertionError("the interrupt came too late")

    with monkeypatch.context() as patched:
        patched.setattr("convoy.strategies.pipelined.balance_bench.measure", measure)
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(batches)
    assert measured == [1]
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert len(trainer.fit(batches)) == 1
    assert trainer.history.last.samples == 32
    assert trainer.history.plan.cuts and trainer.history.measured.step_seconds > 0
