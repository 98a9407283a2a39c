"""Writing so that a crash at any moment leaves the old or the new, never half of it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from convoy.errors import MachineError

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would grow larger than allowed",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
    errno.EROFS: "the file system is read-only",
    errno.ENOTDIR: "a part of the path is a file",
    errno.EEXIST: "a file of that name is in the way",
}


@contextlib.contextmanager
def machine_errors(path: Path, instead: str = "choose another run directory") -> Iterator[None]:
    """Turn an OSError on ``path`` into one sentence; ``instead`` is the next step."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error, instead) from error


def cannot_write(path: Path, error: OSError, instead: str = "choose another run directory") -> MachineError:
    reason = _REASONS.get(error.errno or 0) or (error.strerror or str(error)).lower()
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return MachineError(f"cannot write {path}: {reason}", hint=f"free some space, or {instead}" if full else instead)


def sync_directory(path: Path) -> None:
    """Make the names in ``path`` survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_synced(path: Path, content: bytes) -> None:
    """Write a new file and wait until it is on the disk."""
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_directory(target: Path, files: Mapping[str, bytes]) -> None:
    """Make the directory ``target`` with ``files`` in it, all or nothing. ``target`` must not exist.

    Written aside into a hidden sibling, fsynced (files, then directory), renamed, and the parent fsynced.
    """
    aside = target.with_name(f".writing-{target.name}-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir()
        for name, content in files.items():
            write_synced(aside / name, content)
        sync_directory(aside)
        os.rename(aside, target)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync_directory(target.parent)


def write_file(path: Path, content: str) -> None:
    """Write ``content`` to ``path``, all or nothing, over what is there."""
    aside = path.with_name(f".writing-{path.name}-{os.getpid()}")
    aside.unlink(missing_ok=True)
    try:
        write_synced(aside, content.encode())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    write_file(path, json.dumps(value, indent=2, default=str) + "\n")


def remove_directory(path: Path) -> None:
    """Remove ``path`` so that no half of it can be taken for the whole: it is renamed first."""
    aside = path.with_name(f".removing-{path.name}-{os.getpid()}")
    os.rename(path, aside)
    shutil.rmtree(aside, ignore_errors=True)


def remove_leftovers(parent: Path) -> None:
    """Remove what a killed run left aside in ``parent``."""
    for pattern in (".writing-*", ".removing-*"):
        for path in parent.glob(pattern):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
