"""Tasks compiled to actions and slots: the steady state looks nothing up but the action itself.

Each value tile has one slot for every action that reads it. Who makes it fills these slots, and each reader empties
its own: so memory is freed by the last reader, in whatever order they come, without counting.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from convoy.engines.pool import POOL
from convoy.engines.program import Store
from convoy.errors import InternalError
from convoy.schedule.action import Action, Ref
from convoy.schedule.recurring import Recurring
from convoy.schedule.schedule import DRIVER, Entry
from convoy.strategies.tasks.ops import Frame, Lowered, Op, Partition, Run, Task

_EMPTY = object()


class _Load(NamedTuple):
    """Values from slots into a register; ``several`` as a list. ``view``: the tile of a whole value."""

    register: int
    slots: tuple[int, ...]
    several: bool
    view: Partition | None


class _Step(NamedTuple):
    run: Run
    arguments: tuple[int, ...]
    results: tuple[int, ...]
    dead: tuple[int, ...]  # registers that nobody reads afterwards


@dataclass(frozen=True, slots=True)
class _Compiled:
    """One action: load, compute, store."""

    label: str
    tile: int
    registers: int
    loads: tuple[_Load, ...]
    steps: tuple[_Step, ...]
    stores: tuple[tuple[int, tuple[int, ...]], ...]

    def __call__(self, frame: Frame, store: Store) -> None:
        slots = frame.slots
        registers: list[Any] = [None] * self.registers
        for load in self.loads:
            values: list[Any] = []
            for slot in load.slots:
                values.append(slots[slot])
                slots[slot] = _EMPTY
            if any(value is _EMPTY for value in values):
                raise InternalError(f"{self.label} reads what nobody has written")
            value = store.keep(values if load.several else values[0])
            registers[load.register] = value if load.view is None else load.view.narrow(value, self.tile)
        del value, values
        for step in self.steps:
            arguments = [registers[r] for r in step.arguments]
            for register in step.dead:
                registers[register] = None
            results = step.run(frame, self.tile, arguments)
            for register, value in zip(step.results, results, strict=True):
                registers[register] = value
        for register, targets in self.stores:
            for slot in targets:
                slots[slot] = registers[register]


class TaskProgram:
    """Implements ``Program`` for the tasks of one step. ``recurring`` is its schedule; ``begin`` and ``end`` bracket a
    mini-batch."""

    def __init__(self, lowered: Lowered, tasks: Sequence[Task], inputs: Sequence[str]) -> None:
        self._values = lowered.values
        self._frames: dict[int, Frame] = {}
        self._slots: dict[tuple[str, int], list[int]] = {}  # (value, tile) → a slot for each reader
        self._size = 0
        self._inputs = tuple(inputs)
        compiler = _Compiler(self._values, tasks)
        self._compiled = compiler.compile()
        self._entered = {value: compiler.slots.get((value, 0), []) for value in (*self._inputs, "t")}
        self._size = compiler.size
        self.recurring = Recurring(compiler.entries(self._inputs), compiler.seconds())

    def begin(self, frame: Frame) -> None:
        """Take up a mini-batch; its ``slots`` are set up here."""
        frame.slots = [_EMPTY] * self._size
        self._frames[frame.batch] = frame

    def end(self, batch: int) -> None:
        self._frames.pop(batch, None)

    def run(self, action: Action, store: Store) -> int:
        frame = self._frames[action.batch]
        if action.kind == "E":
            for value, slots in self._entered.items():
                for slot in slots:
                    frame.slots[slot] = frame.target if value == "t" else frame.inputs[value[2:]]
            return 0
        with torch.no_grad():
            self._compiled[action.kind, action.subject, action.part](frame, store)
        return 0


class _Compiler:
    def __init__(self, values: Mapping[str, Partition], tasks: Sequence[Task]) -> None:
        self._values, self._tasks = values, tasks
        self.slots: dict[tuple[str, int], list[int]] = {}
        self.size = 0
        self._outside = self._read_outside()
        self._loads: dict[tuple[int, int], tuple[_Load, ...]] = {}

    def _read_outside(self) -> set[str]:
        """Values that another task reads than the one that makes them."""
        outside: set[str] = set()
        for task in self._tasks:
            made = {value for op in task.ops for value in op.writes}
            outside.update(read.value for op in task.ops for read in op.reads if read.value not in made)
        return outside

    def compile(self) -> dict[tuple[str, str, int], _Compiled]:
        for number, task in enumerate(self._tasks):
            for tile in range(task.partition.count):
                self._loads[number, tile] = tuple(self._load(task, tile))
        compiled = {}
        for number, task in enumerate(self._tasks):
            for tile in range(task.partition.count):
                key = (task.kind, task.subject, tile)
                if key in compiled:
                    raise InternalError(f"two tasks are called {task.kind} {task.subject}")
                compiled[key] = self._one(task, tile, self._loads[number, tile])
        return compiled

    def _registers(self, task: Task) -> dict[Any, int]:
        """Registers for what is read from outside (each way of reading has its own) and what is made."""
        registers: dict[Any, int] = {}
        for op in task.ops:
            for read in op.reads:
                key = read.value if read.value in registers else read
                registers.setdefault(key, len(registers))
            for value in op.writes:
                registers.setdefault(value, len(registers))
        return registers

    def _load(self, task: Task, tile: int) -> Iterable[_Load]:
        registers = self._registers(task)
        for key, register in registers.items():
            if isinstance(key, str):
                continue
            partition = self._values[key.value]
            tiles = _tiles(partition, key.how, tile)
            if key.how == "tile" and partition != task.partition:
                raise InternalError(f"{task.kind} {task.subject} reads {key.value}, which is cut in another way")
            taken = []
            for one in tiles:
                self.slots.setdefault((key.value, one), []).append(self.size)
                taken.append(self.size)
                self.size += 1
            view = task.partition if key.how == "view" else None
            yield _Load(register, tuple(taken), key.how == "all", view)

    def _one(self, task: Task, tile: int, loads: tuple[_Load, ...]) -> _Compiled:
        registers = self._registers(task)

        def register_of(value: Any) -> int:
            return registers[value.value if value.value in registers else value]

        steps: list[tuple[Run, tuple[int, ...], tuple[int, ...]]] = []
        for op in task.ops:
            steps.append((op.run, tuple(map(register_of, op.reads)), tuple(registers[v] for v in op.writes)))
        stores = tuple(
            (registers[value], tuple(slots))
            for op in task.ops
            for value in op.writes
            if (slots := self.slots.get((value, tile)))
        )
        kept = {register for register, _ in stores}
        last: dict[int, int] = {}
        for place, (_, arguments, _) in enumerate(steps):
            last.update(dict.fromkeys(arguments, place))
        made = tuple(
            _Step(run, arguments, results, tuple({r for r in arguments if last[r] == place and r not in kept}))
            for place, (run, arguments, results) in enumerate(steps)
        )
        return _Compiled(f"{task.kind}{task.subject}/{tile}", tile, len(registers), loads, made, stores)

    # --- the schedule --------------------------------------------------------------------------------------

    def entries(self, inputs: Sequence[str]) -> Iterable[Entry]:
        """The actions of mini-batch 0, with every state at version 0."""
        written = tuple(Ref(value, 0) for value in (*inputs, "t") if value in self._outside)
        yield DRIVER, Action("E", "0", 0, 0, (), written)
        versions: dict[str, int] = {}
        for task in self._tasks:
            for tile in range(task.partition.count):
                yield POOL, self._action(task, tile, versions)

    def _action(self, task: Task, tile: int, versions: dict[str, int]) -> Action:
        made = {value for op in task.ops for value in op.writes}
        reads: dict[Ref, None] = {}
        writes: dict[Ref, None] = {}
        for op in task.ops:
            for name in op.reads_state:
                reads[Ref(name, versions.get(name, 0))] = None
            for name in self._moved(op, tile):
                version = versions.get(name, 0)
                reads[Ref(name, version)] = None
                writes[Ref(name, version + 1)] = None
                versions[name] = version + 1
        for op in task.ops:
            for read in op.reads:
                if read.value not in made:
                    reads.update(dict.fromkeys(self._refs(read.value, tile, read.how)))
            for value in op.writes:
                if value in self._outside:
                    writes[Ref(self._values[value].tile_name(value, tile), 0)] = None
        return Action(task.kind, task.subject, 0, tile, tuple(reads), tuple(writes))

    @staticmethod
    def _moved(op: Op, tile: int) -> Iterable[str]:
        return (op.partition.tile_name(name, tile) for name in op.moves) if op.own_state else op.moves

    def _refs(self, value: str, tile: int, how: str) -> Iterable[Ref]:
        partition = self._values[value]
        return (Ref(partition.tile_name(value, one), 0) for one in _tiles(partition, how, tile))

    def seconds(self) -> list[float]:
        """Estimates by place in the schedule."""
        found = [0.0]
        for task in self._tasks:
            each = sum(op.seconds for op in task.ops) / task.partition.count
            found += [each] * task.partition.count
        return found


def _tiles(partition: Partition, how: str, tile: int) -> Sequence[int]:
    """Which tiles of a value the tile ``tile`` of a task reads."""
    return range(partition.count) if how == "all" else [tile if how == "tile" else 0]
