"""What forecasts of different strategies have in common: sizes, the cores' company, and times of actions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from statistics import median
from time import perf_counter

from torch.optim import Optimizer

from convoy.engines.engine import EngineOptions
from convoy.engines.modelled import Modelled, modelled
from convoy.engines.program import Store
from convoy.engines.workers import Workers
from convoy.errors import OptionError
from convoy.graph.graph import Graph
from convoy.schedule.action import Action
from convoy.schedule.recurring import Recurring
from convoy.strategies.base import Loss
from convoy.strategies.batch import arguments, batch_size
from convoy.strategies.pipelined import Pipelined
from convoy.strategies.pipelined.auto import CONTENTION, possibilities, workers_at_hand
from convoy.strategies.pipelined.balance_bench import Bench
from convoy.strategies.pipelined.optimizer import snapshot
from convoy.strategies.pipelined.planner import available_threads
from convoy.strategies.speculative.frame import NotedFrame
from convoy.strategies.tasks.build import Bound
from convoy.strategies.tasks.program import TaskProgram
from convoy.strategies.tasks.timed import action_seconds

PASS_SECONDS = 0.45
"""Actions are timed on a part of the mini-batch where the whole of it would take longer."""
FEWEST_SAMPLES = 16
"""Parts are not made smaller: calls would take longer than what they compute."""
REHEARSED_SECONDS = 1.5
"""The whole of a mini-batch is rehearsed, unless one thread takes longer than this: then a part."""
PASSES = 2
"""Of a program whose actions are timed alone, after one that warms up."""
REHEARSALS = 4
"""Of a program on an engine, after one that warms up."""
BUDGET_SECONDS = 0.4
"""For the passes of a program, or its rehearsals; one always counts."""


def has_batch_norm(bench: Bench) -> bool:
    return any(node.kind == "batch_norm" for node in bench.graph.nodes)


def activations(bench: Bench) -> int:
    return bench.profile(1).saved_bytes(0, len(bench.graph.nodes))


def weights(bench: Bench) -> int:
    """Weights, gradients and optimizer state."""
    return bench.weights_bytes


def threads_for(bench: Bench, what: str) -> int:
    """Threads at hand. Raises OptionError where ``what`` needs two and there is one."""
    threads = available_threads(bench.settings)
    if threads < 2:
        raise OptionError(f"{what} needs two cores or more, and there is one")
    return threads


def stages_and_threads(bench: Bench) -> tuple[int, int]:
    """Stages of the pipeline to plan for, and threads of each worker. Raises OptionError where there can be none."""
    workers = workers_at_hand(bench.settings)
    if workers < 2:
        what = "devices" if bench.settings.device.startswith("cuda") else "cores"
        raise OptionError(f"a pipeline needs two {what} or more, and there is one")
    whole = takewhile(lambda p: p.accumulate == 1, possibilities(Pipelined(), bench, workers))  # measures as it goes
    found = [p for p in whole if p.stages > 1 and p.clock == "registers"]
    if not found:
        raise OptionError(f"{bench.graph.model_name} cannot be cut anywhere")
    stages = min(found, key=lambda p: p.seconds).stages
    return stages, max(1, available_threads(bench.settings) // stages)


def contention(bench: Bench) -> float:
    """How much slower the cores are together than one is alone, as the stages showed."""
    try:
        stages, threads = stages_and_threads(bench)
    except OptionError:  # it cannot be cut
        return CONTENTION
    together = sum(stage.seconds for stage in bench.balanced(stages, threads).times)
    return max(1.0, together / bench.whole(threads))


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """``finish``: seconds of a mini-batch, ``seconds``: of each of its actions beside the others, by place in the
    schedule. Medians of a few, after one that warms up: training meets disturbance too."""

    finish: float
    seconds: Sequence[float]


class _Watched:
    """A program that notes what each action took."""

    def __init__(self, program: TaskProgram) -> None:
        self._program = program
        self._places = {(a.kind, a.subject, a.part): place for place, (_, a) in enumerate(program.recurring.entries)}
        self.forget()

    def forget(self) -> None:
        self._seconds: list[list[float]] = [[] for _ in self._places]

    def run(self, action: Action, store: Store) -> int:
        start = perf_counter()
        moved = self._program.run(action, store)
        spent, place = perf_counter() - start, self._places[action.kind, action.subject, action.part]
        self._seconds[place].append(spent)
        return moved

    def medians(self) -> list[float]:
        return [median(each) for each in self._seconds]


@dataclass(frozen=True)
class Actions:
    """Times and carries out programs of tasks: on copies of the weights, with an optimizer that moves nothing."""

    bench: Bench
    loss: Loss

    @cached_property
    def optimizer(self) -> Optimizer:
        return self.bench.idle_optimizer()

    @cached_property
    def graph(self) -> Graph:
        return self.bench.scratch

    def bound(self, workers: int) -> Bound:
        return Bound.of(self.graph, self.graph.program, self.loss, self.optimizer, self.bench.settings, workers)

    def seconds(self, program: TaskProgram, threads: int = 1) -> list[float]:
        """Of each action, by place, for the part of the mini-batch that is measured, alone in a thread with ``threads``
        intra-op threads. ``whole`` makes them those of the mini-batch."""
        return action_seconds(
            program, self._frames(threads, PASS_SECONDS), device=self.bench.settings.device, threads=threads,
            repeats=PASSES, budget_seconds=BUDGET_SECONDS,
        )  # fmt: skip

    def whole(
        self, recurring: Recurring, seconds: Sequence[float], threads: int = 1, limit: float = PASS_SECONDS
    ) -> list[float]:
        """Seconds of a part scaled as the model's sequential step is; updates are not."""
        bench, parts = self.bench, self.parts(threads, limit)
        if parts == 1:
            return list(seconds)
        update = bench.update(threads)
        bent = (bench.whole(threads) - update) / (bench.whole(threads, parts) - update)
        factor = bench.samples / batch_size(bench.part(parts)[0]) * bent
        kinds = (action.kind for _, action in recurring.entries)
        return [spent * (1.0 if kind == "U" else factor) for kind, spent in zip(kinds, seconds, strict=True)]

    def parts(self, threads: int, limit: float = PASS_SECONDS) -> int:
        """Of how many parts of the mini-batch the first is measured, where a thread should take ``limit`` seconds."""
        parts, whole = 1, self.bench.whole(threads)
        while whole / parts > limit and self.bench.samples >= 2 * parts * FEWEST_SAMPLES:
            parts *= 2
        return parts

    def carried_out(self, program: TaskProgram, workers: Mapping[str, int], kind: type[Workers]) -> Modelled:
        """The mini-batch by ``workers`` (name → intra-op threads) on the modelled engine, its actions as long as in a
        rehearsal on an engine of this ``kind``: how much slower workers are together than alone is in them. What
        handing over costs is what the rehearsal takes longer than the modelled engine."""
        threads, recurring = next(iter(workers.values())), program.recurring
        if self.bench.settings.device.startswith("cuda"):
            return modelled(recurring, self.whole(recurring, self.seconds(program, threads), threads), list(workers))
        shown = self.rehearsed(program, workers, kind)
        part = modelled(recurring, shown.seconds, list(workers))
        whole = modelled(recurring, self.whole(recurring, shown.seconds, threads, REHEARSED_SECONDS), list(workers))
        finish = whole.finish * shown.finish / part.finish
        return Modelled(finish, {name: min(spent, finish) for name, spent in whole.busy.items()})

    def rehearsed(self, program: TaskProgram, workers: Mapping[str, int], kind: type[Workers]) -> Rehearsed:
        """The mini-batch, or a part where it takes long, on a real engine."""
        store, watched = Store(), _Watched(program)
        taken: list[float] = []
        frame = self._frames(next(iter(workers.values())), REHEARSED_SECONDS)
        engine = kind(watched, store, EngineOptions(lanes=workers, record=False, clock=perf_counter))
        try:
            began = 0.0
            for number in range(1 + REHEARSALS):
                if number == 1:
                    began = perf_counter()
                    watched.forget()
                elif number and perf_counter() - began > BUDGET_SECONDS:
                    break
                program.begin(frame(number))
                entries = program.recurring.at(
                    number, {name: store.version(name) for name in program.recurring.advances}
                )
                start = perf_counter()
                engine.submit(entries)
                engine.settle()
                if number:
                    taken.append(perf_counter() - start)
                program.end(number)
                program.recurring.rank()
        finally:
            engine.close()
            self.optimizer.zero_grad(set_to_none=True)
        return Rehearsed(median(taken), watched.medians())

    def _frames(self, threads: int, limit: float) -> Callable[[int], NotedFrame]:
        x, y = self.bench.part(self.parts(threads, limit))

        def frame(number: int) -> NotedFrame:
            self.optimizer.zero_grad(set_to_none=True)
            return NotedFrame(number, [], self.graph.bind(*arguments(x)), y, snapshot(self.optimizer), batch_size(x))

        return frame
