"""A trace in Chrome's JSON format, for Perfetto (ui.perfetto.dev) and chrome://tracing.

Every lane is a thread of its own. Perfetto drops slices that cross, so a lane whose actions overlap in time (a pool
of workers) is spread over as many threads as it takes. Times are microseconds with three decimals.
"""

from __future__ import annotations

import gzip
import threading
from pathlib import Path
from typing import Any, TextIO

from convoy.events.event import Event
from convoy.events.plain import to_json

_DRIVER = 0  # thread number of what the driver does: decisions, epochs, the loss as a counter


class ChromeTrace:
    """A sink that writes ``path`` (gzipped), an array of trace events; ``close`` ends it.

    Like ``JsonLines`` it keeps a failure of the file in ``error`` and does not raise in the middle of a run.
    """

    def __init__(self, path: Path | str, *, hold: int = 512) -> None:
        self.path = Path(path)
        self.error: OSError | None = None
        self._file: TextIO | None = _open_new(self.path)
        self._lock = threading.Lock()
        self._hold = hold
        self._held: list[dict[str, Any]] = []
        # lane → its threads: (number, end of its last slice in ns)
        self._lanes: dict[str, list[tuple[int, int]]] = {"driver": [(_DRIVER, 0)]}
        self._threads = _DRIVER
        self._separator = "[\n"
        self._name_thread(_DRIVER, "driver")

    def __call__(self, event: Event) -> None:
        with self._lock:
            if self._file is None:
                return
            if event.kind == "action":
                self._slice(event)
            elif event.kind == "step":
                loss = event.data.get("loss")
                if loss is not None:
                    self._add(event, "C", args={"loss": loss}, name="loss")
            elif event.kind in ("decision", "epoch", "warning", "run"):
                self._add(event, "i", args=event.data, s="g" if event.kind == "run" else "t")
            if len(self._held) >= self._hold:
                self._write()

    def close(self) -> None:
        """Write the rest and the end of the array. May be called twice."""
        with self._lock:
            if self._file is None:
                return
            self._write()
            file, self._file = self._file, None
            try:
                file.write("\n]\n")
                file.close()
            except OSError as error:
                self.error = self.error or error

    def _slice(self, event: Event) -> None:
        begin, end = _nanoseconds(event.start), _nanoseconds(event.end)
        args = {"batch": event.batch, **event.data}
        self._held.append(
            {
                "name": event.name,
                "cat": str(event.data.get("kind", "action")),
                "ph": "X",
                "ts": begin / 1000,
                "dur": (end - begin) / 1000,
                "pid": 1,
                "tid": self._thread(event.lane, begin, end),
                "args": args,
            }
        )

    def _add(self, event: Event, phase: str, **more: Any) -> None:
        row = {"name": event.name, "cat": event.kind, "ph": phase, "ts": _nanoseconds(event.start) / 1000}
        self._held.append({**row, "pid": 1, "tid": _DRIVER, **more})

    def _thread(self, lane: str, begin: int, end: int) -> int:
        """The number of a thread of ``lane`` that is free from ``begin`` on."""
        threads = self._lanes.setdefault(lane, [])
        for index, (number, last) in enumerate(threads):
            if last <= begin:
                threads[index] = (number, end)
                return number
        self._threads += 1
        self._name_thread(self._threads, lane if not threads else f"{lane} ({len(threads) + 1})")
        threads.append((self._threads, end))
        return self._threads

    def _name_thread(self, number: int, name: str) -> None:
        for key, args in (("thread_name", {"name": name}), ("thread_sort_index", {"sort_index": number})):
            self._held.append({"name": key, "ph": "M", "pid": 1, "tid": number, "args": args})

    def _write(self) -> None:
        held, self._held = self._held, []
        if self._file is None or self.error is not None:
            return
        try:
            for row in held:
                self._file.write(self._separator + to_json(row))
                self._separator = ",\n"
        except OSError as error:
            self.error = error


def _open_new(path: Path) -> TextIO:
    return gzip.open(path, "wt", encoding="utf-8", compresslevel=5)


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
