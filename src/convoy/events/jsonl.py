"""Events as JSON lines in a file."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from convoy.events.event import Event
from convoy.events.plain import event_to_dict, to_json


class JsonLines:
    """A sink that appends one line per event to ``path``.

    Lines are held back and written about once a second (``flush_seconds``) and at ``close``, so that a call from a
    worker thread costs next to nothing. It never raises while training runs: what went wrong with the file stands in
    ``error``, for the driver to look at. ``row`` makes the line's value of an event, None to leave the event out.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        row: Callable[[Event], Any] = event_to_dict,
        flush_seconds: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = Path(path)
        self.error: OSError | None = None
        self._row = row
        self._flush_seconds = flush_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._held: list[Event] = []
        self._flushed_at = clock()
        self._file: TextIO | None = _open_to_append(self.path)

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._held.append(event)
            if self._clock() - self._flushed_at >= self._flush_seconds:
                self._write()

    def flush(self) -> None:
        """Write what is held back."""
        with self._lock:
            self._write()

    def close(self) -> None:
        """Write what is held back and close the file. May be called twice."""
        with self._lock:
            self._write()
            file, self._file = self._file, None
            try:
                if file is not None:
                    file.close()
            except OSError as error:
                self.error = self.error or error

    def _write(self) -> None:
        held, self._held = self._held, []
        self._flushed_at = self._clock()
        if self._file is None or self.error is not None:
            return
        rows = (self._row(event) for event in held)
        text = "".join(to_json(row) + "\n" for row in rows if row is not None)
        try:
            if text:
                self._file.write(text)
                self._file.flush()
        except OSError as error:
            self.error = error


def _open_to_append(path: Path) -> TextIO:
    """``path`` opened at its end; a line that a killed run left unfinished is ended first."""
    torn = False
    if path.exists() and path.stat().st_size:
        with path.open("rb") as file:
            file.seek(-1, 2)
            torn = file.read(1) != b"\n"
    opened = path.open("a", encoding="utf-8")
    if torn:
        opened.write("\n")
    return opened


def read_lines(lines: Iterable[str]) -> Iterator[Any]:
    """The values in ``lines``; a line that a killed run left unfinished is passed over."""
    for line in lines:
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue
