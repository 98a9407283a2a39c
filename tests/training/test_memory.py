import subprocess
import sys

import pytest

CHILD = """
import mmap, time
from convoy.training.memory import resident_bytes

before = resident_bytes()
held = mmap.mmap(-1, 64_000_000)
held.write(b"x" * 64_000_000)
deadline = time.monotonic() + 20
while resident_bytes() - before < 48_000_000 and time.monotonic() < deadline:
    time.sleep(0.05)  # a kernel may count what was touched a moment later
print(resident_bytes() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not say")
def test_what_is_held_is_counted_in_bytes():
    """In a process of its own: one that freed much before may give the same pages out again."""
    said = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=120, check=True)
    assert 48_000_000 < int(said.stdout) < 160_000_000


def test_every_epoch_says_how_much_memory_is_held(build):
    parts = build()
    parts.trainer.fit(parts.train, parts.validation, epochs=2)
    told = [event.data["memory_bytes"] for event in parts.events if event.kind == "epoch"]
    assert len(told) == 2 and (told == [None, None] or all(value > 10_000_000 for value in told))
