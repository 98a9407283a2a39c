"""The server's journal: one file a version, header and weights in one, written aside, fsynced and renamed.

The last two are kept. A push is acknowledged after its file is there, so no acknowledged update is ever lost.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from convoy.errors import CheckpointError, MachineError
from convoy.strategies.bilayered.layout import Flat

KEEP = 2
_NAME = re.compile(r"^journal-(\d{10})\.safetensors$")


class Journal:
    """Files in ``folder``, which is made. Raises MachineError where the disk refuses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".writing-*"):
            left.unlink(missing_ok=True)

    def write(self, version: int, header: Mapping[str, Any], weights: Flat) -> Path:
        """Returns when the file is on the disk."""
        target = self.folder / f"journal-{version:010d}.safetensors"
        aside = self.folder / f".writing-{target.name}"
        content = save({key.replace("/", "."): array for key, array in weights.items()}, {"header": json.dumps(header)})
        try:
            with open(aside, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, target)
            handle = os.open(self.folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
            for old in _versions(self.folder)[:-KEEP]:
                (self.folder / f"journal-{old:010d}.safetensors").unlink(missing_ok=True)
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise MachineError(
                f"the journal {target} cannot be written: {(error.strerror or str(error)).lower()}",
                hint="free some space, or choose another run directory",
            ) from error
        return target

    def read(self) -> list[tuple[int, dict[str, Any], Flat]]:
        """(version, header, weights), the newest last; files that are damaged are passed over.

        Raises CheckpointError where there are files and none is whole.
        """
        found, damaged = [], []
        for version in _versions(self.folder):
            path = self.folder / f"journal-{version:010d}.safetensors"
            try:
                with safe_open(path, framework="numpy") as file:
                    header = json.loads((file.metadata() or {})["header"])
                    found.append((version, header, {k.replace(".", "/"): file.get_tensor(k) for k in file.keys()}))  # noqa: SIM118
            except (SafetensorError, OSError, KeyError, ValueError) as error:
                damaged.append(f"{path.name}: {error}")
        if damaged and not found:
            raise CheckpointError(f"no journal in {self.folder} is whole ({damaged[-1]})", hint="start the run again")
        return found


def _versions(folder: Path) -> list[int]:
    matches = (_NAME.match(path.name) for path in folder.iterdir())
    return sorted(int(match[1]) for match in matches if match is not None)
