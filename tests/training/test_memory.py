import sys

import pytest

from convoy.training.memory import resident_bytes


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not say")
def test_what_is_held_is_counted_in_bytes():
    before = resident_bytes()
    held = bytearray(b"x" * 64_000_000)
    assert 48_000_000 < resident_bytes() - before < 128_000_000
    del held


def test_every_epoch_says_how_much_memory_is_held(build):
    parts = build()
    parts.trainer.fit(parts.train, parts.validation, epochs=2)
    told = [event.data["memory_bytes"] for event in parts.events if event.kind == "epoch"]
    assert len(told) == 2 and (told == [None, None] or all(value > 10_000_000 for value in told))
