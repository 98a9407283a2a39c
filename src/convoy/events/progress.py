"""How a run goes, on stderr: a bar on a terminal, plain lines elsewhere.

Reads run, step, epoch, decision and warning events. ``NO_COLOR`` is honoured (by rich).
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from convoy.events.event import Event
from convoy.events.nodes import node_table

_RATE_SECONDS = 10.0  # samples per second are those of the last so many seconds


class Progress:
    """A sink for people.

    On a terminal: one live line with epoch, loss, accuracy, samples/s, mini-batches in flight and time left, and one
    lasting line per epoch. Elsewhere: the lasting lines, and a line within an epoch every ``plain_seconds``.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        refresh_seconds: float = 0.25,
        plain_seconds: float = 30.0,
    ) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._clock = clock
        self._live = bool(getattr(self._stream, "isatty", lambda: False)())
        self._every = refresh_seconds if self._live else plain_seconds
        self._shown_at = clock()
        self._bar: Any = None
        self._console: Any = None
        self._epochs = 0
        self._batches: int | None = None  # per epoch, where the loader knows
        self._epoch = 0
        self._clear_epoch()
        self._recent: deque[tuple[float, int]] = deque()

    def _clear_epoch(self) -> None:
        self._done = 0  # batches
        self._samples = 0
        self._loss_sum = 0.0
        self._correct: int | None = 0
        self._accepted: list[float] = []  # shares of the mini-batches of the epoch, where a strategy speculates
        self._last: Mapping[str, Any] = {}

    def __call__(self, event: Event) -> None:
        if event.kind == "step":
            self._step(event)
        elif event.kind == "epoch":
            self._print(" · ".join([epoch_line(event.data, self._epochs), *self._speculated()]))
        elif event.kind == "nodes":
            self._print(node_table(event.data["nodes"]))
        elif event.kind == "warning":
            self._print(f"warning: {event.data.get('message', event.name)}")
        elif event.kind == "run":
            self._run(event)

    def _run(self, event: Event) -> None:
        if event.name == "begin":
            data = event.data
            self._epochs = int(data.get("epochs") or 0)
            self._batches = data.get("batches_per_epoch")
            self._epoch = 0
            self._recent.clear()
            self._start_bar()
            where = f" from batch {data['resumed_from']}" if data.get("resumed_from") else ""
            self._print(f"{data.get('model', 'model')} · {data.get('strategy', '')}{where}")
        else:
            self.close()
            if event.name == "interrupted":
                self._print(f"interrupted at batch {event.batch}")

    def _step(self, event: Event) -> None:
        data, now = event.data, self._clock()
        if data["epoch"] != self._epoch:
            self._epoch = data["epoch"]
            self._clear_epoch()
            # A resumed epoch begins in its middle.
            self._done = data.get("index", 0)
        samples = data["samples"]
        self._done += 1
        self._samples += samples
        self._loss_sum += (data["loss"] or 0.0) * samples
        correct = data.get("correct")
        self._correct = None if correct is None or self._correct is None else self._correct + correct
        self._last = data
        if "accepted" in data:
            self._accepted.append(data["accepted"])
        self._recent.append((now, samples))
        while len(self._recent) > 1 and now - self._recent[0][0] > _RATE_SECONDS:
            self._recent.popleft()
        if now - self._shown_at >= self._every:
            self._shown_at = now
            self._show(data.get("in_flight", 0))

    def rate(self) -> float:
        """Samples per second over the last seconds."""
        if len(self._recent) < 2:
            return 0.0
        elapsed = self._recent[-1][0] - self._recent[0][0]
        return sum(samples for _, samples in list(self._recent)[1:]) / elapsed if elapsed > 0 else 0.0

    def _seconds_left(self) -> float | None:
        if self._batches is None or len(self._recent) < 2:
            return None
        elapsed = self._recent[-1][0] - self._recent[0][0]
        left = self._batches * (self._epochs - self._epoch + 1) - self._done
        return max(left, 0) * elapsed / (len(self._recent) - 1)

    def _parts(self, in_flight: int) -> list[str]:
        parts = [f"loss {self._loss_sum / max(self._samples, 1):.4f}"]
        if self._correct is not None:
            parts.append(f"accuracy {self._correct / max(self._samples, 1):.2%}")
        parts.append(f"{self.rate():.0f} samples/s")
        if in_flight:
            parts.append(f"in flight {in_flight}")
        parts += self._speculated()
        left = self._seconds_left()
        if left is not None:
            parts.append(f"{clock_time(left)} left")
        return parts

    def _speculated(self) -> list[str]:
        """What a strategy that speculates says: samples accepted in this epoch, agreement and time saved now."""
        parts = []
        if self._accepted:
            parts.append(f"accepted {sum(self._accepted) / len(self._accepted):.0%}")
        if "agreement" in self._last:
            parts.append(f"agreement {self._last['agreement']:.2f}")
        if "time_saved" in self._last:
            parts.append(f"time saved {self._last['time_saved']:.0%}")
        return parts

    def _show(self, in_flight: int) -> None:
        text = " · ".join(self._parts(in_flight))
        epoch = f"epoch {self._epoch}/{self._epochs}"
        if self._bar is not None:
            self._bar.update(0, description=epoch, completed=self._done, total=self._batches, numbers=text)
            self._bar.refresh()
        elif not self._live:
            of = f"/{self._batches}" if self._batches else ""
            self._print(f"{epoch} · batch {self._done}{of} · {text}")

    def _start_bar(self) -> None:
        if not self._live:
            return
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        self.close()
        self._console = Console(file=self._stream)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}"),
            TextColumn("{task.fields[numbers]}"),
            console=self._console,
            auto_refresh=False,  # refreshed with the steps: no thread beside the workers
            transient=True,
        )
        self._bar.add_task("starting", total=self._batches, numbers="")
        self._bar.start()

    def say(self, text: str) -> None:
        """Lines that stay, above the live one."""
        self._print(text)

    def _print(self, line: str) -> None:
        if self._console is not None:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """Take the live line away. May be called twice."""
        bar, self._bar, self._console = self._bar, None, None
        if bar is not None:
            bar.stop()


def epoch_line(data: Any, epochs: int) -> str:
    """``epoch 2/10 · loss 0.1234 · accuracy 97.10% · validation 0.1500, 96.80% · 1234 samples/s · 12 s``."""
    parts = [f"epoch {data['epoch']}/{epochs}" if epochs else f"epoch {data['epoch']}"]
    parts.append(f"loss {data['train_loss']:.4f}")
    if data.get("train_accuracy") is not None:
        parts.append(f"accuracy {data['train_accuracy']:.2%}")
    if data.get("validation_loss") is not None:
        accuracy = data.get("validation_accuracy")
        share = f", {accuracy:.2%}" if accuracy is not None else ""
        parts.append(f"validation {data['validation_loss']:.4f}{share}")
    parts.append(f"{data['samples_per_second']:.0f} samples/s")
    parts.append(f"{data['seconds']:.1f} s")
    return " · ".join(parts)


def clock_time(seconds: float) -> str:
    """``75`` → ``1:15``, ``3700`` → ``1:01:40``."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
