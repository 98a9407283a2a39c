"""Scalars for TensorBoard. Needs the extra ``tensorboard``."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from convoy.errors import MachineError, OptionError
from convoy.events.event import Event
from convoy.events.plain import plain

_EPOCH = {
    "train_loss": "train/epoch_loss",
    "train_accuracy": "train/accuracy",
    "validation_loss": "validation/loss",
    "validation_accuracy": "validation/accuracy",
    "samples_per_second": "speed/samples_per_second",
    "seconds": "speed/epoch_seconds",
    "memory_bytes": "machine/memory_bytes",
}
_STEP = {"loss": "train/loss", "lr": "train/lr"}
_NOT = {"epoch", "index", "correct", "samples", "in_flight", "lanes"}  # of a step: numbers that are no measurement


class TensorBoard:
    """A sink that writes the numbers of mini-batches and epochs below ``directory``, over the number of mini-batches.

    Like ``JsonLines`` it keeps a failure of the file in ``error`` and does not raise in the middle of a run. Raises
    OptionError where TensorBoard is not installed, MachineError where ``directory`` cannot be written.
    """

    def __init__(self, directory: Path | str) -> None:
        try:
            from tensorboard.summary import Writer
        except ImportError:
            raise OptionError(
                "TensorBoard is not installed",
                hint="pip install 'convoy-train[tensorboard]'; events.jsonl is there always",
            ) from None
        self.path = Path(directory)
        self.error: OSError | None = None
        self._lock = threading.Lock()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._writer: Any = Writer(str(self.path))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise MachineError(f"cannot write {self.path}: {reason}", hint="choose another directory") from error

    def __call__(self, event: Event) -> None:
        if event.kind not in ("step", "epoch"):
            return
        now = time.time()
        with self._lock:
            if self._writer is None or self.error is not None:
                return
            try:
                for tag, value in scalars(event):
                    self._writer.add_scalar(tag, value, step=max(event.batch, 0), wall_time=now)
            except OSError as error:
                self.error = error

    def close(self) -> None:
        """Write what is held back. May be called twice."""
        with self._lock:
            writer, self._writer = self._writer, None
            if writer is not None:
                try:
                    writer.close()
                except OSError as error:
                    self.error = self.error or error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def scalars(event: Event) -> Iterator[tuple[str, float]]:
    """The (tag, value) of a step or an epoch; what a strategy reports beside stands under ``strategy/``."""
    known = _STEP if event.kind == "step" else _EPOCH
    for key, value in event.data.items():
        if key in known:
            yield from _numbers(known[key], value)
        elif key == "busy" and isinstance(value, Mapping):
            for lane, share in value.items():
                yield from _numbers(f"busy/{lane}", share)
        elif event.kind == "step" and key not in _NOT:
            yield from _numbers(f"strategy/{key}", value)


def _numbers(tag: str, value: Any) -> Iterator[tuple[str, float]]:
    value = plain(value)  # which makes None of what is not finite
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(f"{tag}/{key}", inner)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield tag, float(value)
