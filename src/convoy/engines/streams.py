"""One CUDA stream a lane, fed by one thread a lane.

A thread only launches; the device works later. So an action that may be *launched* may still have to wait on the
device: its stream waits for the events of whatever it depends on. The hazards are those of the scoreboard, kept here
once more as events: a read waits for its writer, a write of a state for the readers and the writer of the version
before. On one device or several: stages are moved to theirs by the strategy.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from convoy.engines.engine import EngineOptions
from convoy.engines.program import Program, Store
from convoy.engines.threads import ThreadsEngine
from convoy.schedule.action import Action, Ref
from convoy.schedule.schedule import DRIVER, Entry

_MARKS = 256  # launched actions remembered before finished ones are forgotten


class Mark(Protocol):
    """A point in a stream's work; torch.cuda.Event is one."""

    def synchronize(self) -> None: ...

    def query(self) -> bool: ...


class Device(Protocol):
    """What the engine needs of an accelerator; tests give a recorder in its place."""

    def open(self, lane: str) -> Any:
        """A stream for ``lane``."""
        ...

    def using(self, stream: Any) -> Any:
        """Context in which work goes to ``stream``."""
        ...

    def mark(self, stream: Any) -> Mark:
        """A mark after all work given to ``stream`` so far."""
        ...

    def wait(self, stream: Any, mark: Mark) -> None:
        """Later work of ``stream`` waits for ``mark``, on the device."""
        ...

    def keep(self, value: Any, stream: Any) -> None:
        """The memory of the tensors in ``value`` is in use by ``stream``, which did not allocate it."""
        ...


class Cuda:
    """``Device`` by torch.cuda. ``devices``: lane → device index; the driver works on the first one."""

    def __init__(self, devices: Mapping[str, int]) -> None:
        self._devices = dict(devices)
        self._first = min(self._devices.values(), default=0)

    def open(self, lane: str) -> torch.cuda.Stream:
        if lane == DRIVER:  # the caller's own work comes before what it submits
            return torch.cuda.current_stream(self._first)
        return torch.cuda.Stream(device=self._devices[lane])  # type: ignore[no-untyped-call]

    @contextmanager
    def using(self, stream: torch.cuda.Stream) -> Iterator[None]:
        with torch.cuda.stream(stream):
            yield

    def mark(self, stream: torch.cuda.Stream) -> Mark:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(stream)
        return event

    def wait(self, stream: torch.cuda.Stream, mark: Mark) -> None:
        assert isinstance(mark, torch.cuda.Event)
        stream.wait_event(mark)

    def keep(self, value: Any, stream: torch.cuda.Stream) -> None:
        for tensor in _tensors(value):
            if tensor.is_cuda:
                tensor.record_stream(stream)


class Hazards:
    """Marks of writers and readers, by name and version. Holds its own lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._written: dict[Ref, Mark] = {}
        self._read: defaultdict[Ref, list[Mark]] = defaultdict(list)
        self._left: Counter[Ref] = Counter()  # values → admitted readers that are not launched yet

    def admit(self, action: Action) -> None:
        """Take up ``action``: the writers of the values that it reads are remembered until it is launched."""
        with self._lock:
            self._left.update(ref for ref in action.reads if not ref.is_state)

    def before(self, action: Action) -> list[Mark]:
        """Marks that ``action`` has to wait for."""
        with self._lock:
            marks = [self._written[ref] for ref in action.reads if ref in self._written]
            for ref in action.writes:
                if ref.is_state:
                    before = Ref(ref.name, ref.version - 1)
                    marks += self._read.get(before, [])
                    if before in self._written:
                        marks.append(self._written[before])
            return marks

    def after(self, action: Action, mark: Mark) -> None:
        """``action`` was launched; ``mark`` stands behind it."""
        with self._lock:
            for ref in action.reads:
                if ref.is_state:
                    self._read[ref].append(mark)
                elif self._left[ref] > 1:
                    self._left[ref] -= 1
                else:
                    self._left.pop(ref, None)
                    self._written.pop(ref, None)
            for ref in action.writes:
                self._written[ref] = mark
                if ref.is_state:
                    before = Ref(ref.name, ref.version - 1)
                    self._written.pop(before, None)
                    self._read.pop(before, None)

    def __len__(self) -> int:
        return len(self._written) + len(self._read) + len(self._left)


class _KeepingStore(Store):
    """Tells the device which stream uses what it takes or keeps."""

    def __init__(self, store: Store, device: Device, current: threading.local) -> None:
        super().__init__()
        self._device, self._current = device, current

    def take(self, ref: Ref) -> Any:
        return self.keep(super().take(ref))

    def keep(self, value: Any) -> Any:
        self._device.keep(value, self._current.stream)
        return value


class StreamsEngine(ThreadsEngine):
    """Threads that launch, streams that work."""

    beside = False  # on the device: the cores are the driver's

    def __init__(self, program: Program, store: Store, options: EngineOptions, device: Device) -> None:
        self._device = device
        self._hazards = Hazards()
        self._marks: dict[Action, Mark] = {}
        self._current = threading.local()
        self._streams = {lane: device.open(lane) for lane in (*options.lanes, DRIVER)}
        begin = device.mark(self._streams[DRIVER])
        for lane in options.lanes:
            device.wait(self._streams[lane], begin)
        super().__init__(program, _KeepingStore(store, device, self._current), options)

    def submit(self, entries: Iterable[Entry]) -> None:
        entries = list(entries)
        for _, action in entries:
            self._hazards.admit(action)
        super().submit(entries)

    def wait(self, action: Action) -> None:
        """Returns when the device is through with ``action``, not only when it was launched."""
        super().wait(action)
        mark = self._marks.get(action)
        if mark is not None:
            mark.synchronize()

    def is_done(self, action: Action) -> bool:
        if not super().is_done(action):
            return False
        mark = self._marks.get(action)
        if mark is not None and not mark.query():
            return False
        self._marks.pop(action, None)
        return True

    def settle(self) -> None:
        super().settle()
        for mark in list(self._marks.values()):
            mark.synchronize()
        self._marks.clear()

    def _carry_out(self, lane: str, action: Action) -> None:
        stream = self._streams[lane]
        self._current.stream = stream
        with self._device.using(stream):
            for mark in self._hazards.before(action):
                self._device.wait(stream, mark)
            super()._carry_out(lane, action)
            mark = self._device.mark(stream)
        self._hazards.after(action, mark)
        self._marks[action] = mark
        if len(self._marks) > _MARKS:
            for old in [a for a, m in list(self._marks.items()) if m.query()]:
                self._marks.pop(old, None)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif hasattr(value, "__slots__"):
        for name in value.__slots__:
            yield from _tensors(getattr(value, name, None))
