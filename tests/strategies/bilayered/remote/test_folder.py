from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from convoy.strategies.bilayered.remote.folder import journal_folder


@pytest.fixture
def ended() -> int:
    """The number of a process that is no more."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_in_memory_where_there_is_room(tmp_path: Path) -> None:
    folder = journal_folder(1000, tmp_path)
    assert folder.parent == tmp_path and folder.is_dir() and str(os.getpid()) in folder.name


def test_with_temporary_files_where_there_is_none(tmp_path: Path) -> None:
    for memory, size in ((tmp_path, 1 << 60), (tmp_path / "absent", 1)):
        folder = journal_folder(size, memory)
        assert folder.parent == Path(tempfile.gettempdir()) and folder.is_dir()
        folder.rmdir()


def test_what_killed_drivers_left_is_removed_and_nothing_else(tmp_path: Path, ended: int) -> None:
    left, living, other = (
        tmp_path / name for name in (f"convoy-journal-{ended}-a", f"convoy-journal-{os.getppid()}-b", "convoy-other")
    )
    for folder in (left, living, other):
        folder.mkdir()
        (folder / "state").write_text("x")
    kept = journal_folder(1000, tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([kept, living, other])
