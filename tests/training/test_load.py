import subprocess
import sys
import time

import pytest

from convoy.training import load
from convoy.training.load import OtherLoad


def test_others_are_told_from_oneself(monkeypatch):
    """Two cores were busy for a second, and half a core of that was our own."""
    clock = iter([(10.0, 1.0, 100.0), (12.0, 1.5, 101.0)])
    now = next(clock)
    monkeypatch.setattr(load, "_used_seconds", lambda: now[0])
    monkeypatch.setattr(load.time, "process_time", lambda: now[1])
    monkeypatch.setattr(load.time, "perf_counter", lambda: now[2])
    measured = OtherLoad()
    now = next(clock)
    assert measured.cores() == 1.5


def test_where_the_system_does_not_say_nothing_is_claimed(monkeypatch):
    monkeypatch.setattr(load, "_used_seconds", lambda: None)
    assert OtherLoad().cores() is None


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not say")
def test_a_busy_program_is_seen():
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            measured = OtherLoad()
            time.sleep(0.5)
            assert measured.cores() > 0
        finally:
            busy.kill()
