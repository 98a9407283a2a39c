import signal
import threading

import pytest

from convoy.training.interrupt import Interrupt


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
