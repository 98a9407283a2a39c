"""Operations fused into tasks: what follows on the same tile goes on in the same action, while it is in the cache.

An operation joins the task that makes what it reads if it has the same tiles and waits for nothing that the task does
not wait for anyway, so that the fused task can start as early as before, and no cycle arises. A heavy operation
(convolution, linear layer) joins only tasks that are short yet: tasks stay small enough to balance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence

from convoy.strategies.tasks.ops import Op, Task

GRAIN_SECONDS = 1e-3
_SORTS = {**dict.fromkeys("FM", "forward"), **dict.fromkeys("IAS", "backward")}


def separate(ops: Sequence[Op]) -> list[Task]:
    """Each operation is a task of its own."""
    return [Task(op.kind, op.subject, [op]) for op in ops]


def fuse(ops: Sequence[Op], apart: Callable[[Op], Hashable] = lambda _: None) -> list[Task]:
    """Tasks in program order. Operations for which ``apart`` gives different values stay in different tasks."""
    groups: list[list[Op]] = []
    maker: dict[str, int] = {}  # value → its task
    before: list[set[int]] = []  # tasks on which a task depends
    heavy: list[float] = []  # seconds of heavy operations in a tile
    movers = Counter(state for op in ops for state in op.moves)
    for op in ops:
        needed = {maker[read.value] for read in op.reads if read.value in maker}
        place = None
        if all(movers[state] == 1 for state in op.moves):  # several writers of a state keep their order
            alike = {n for n in needed if apart(groups[n][0]) == apart(op)}
            place = _task_for(op, needed, alike, groups, maker, before, heavy)
        if place is None:
            place = len(groups)
            groups.append([])
            before.append(set().union(needed, *(before[n] for n in needed)))
            heavy.append(0.0)
        groups[place].append(op)
        heavy[place] += op.seconds / op.partition.count if op.heavy else 0.0
        maker.update(dict.fromkeys(op.writes, place))
    readers = Counter(read.value for op in ops for read in op.reads)
    for group in groups:
        _overwrite(group, readers)
    return [_task(group) for group in groups]


def _overwrite(group: Sequence[Op], readers: Counter[str]) -> None:
    """Let operations work in the memory of what an earlier one in the task made for them alone."""
    fresh: set[str] = set()
    for op in group:
        for place, read in enumerate(op.reads):
            if read.value in fresh and read.how == "tile" and readers[read.value] == 1 and place in op.overwriting:
                op.run = op.overwriting[place]
                break
        if op.fresh:
            fresh.add(op.writes[0])


def _task_for(
    op: Op,
    needed: set[int],
    alike: set[int],
    groups: Sequence[list[Op]],
    maker: dict[str, int],
    before: Sequence[set[int]],
    heavy: Sequence[float],
) -> int | None:
    sort = _SORTS.get(op.kind)
    for read in reversed(op.reads):
        place = maker.get(read.value)
        if place is None or place not in alike or read.how != "tile" or sort is None:
            continue
        first = groups[place][0]
        if _SORTS.get(first.kind) != sort or first.partition != op.partition:
            continue
        others = [r for r in op.reads if r.how != "tile" and maker.get(r.value) == place]
        if others or not needed - {place} <= before[place]:
            continue
        if op.heavy and heavy[place] >= GRAIN_SECONDS:
            continue
        return place
    return None


def _task(group: list[Op]) -> Task:
    """Named after its first and last operation; of the kind of the first that is not a mere sum."""
    kind = next((op.kind for op in group if op.kind in "FI"), group[0].kind)
    names = list(dict.fromkeys(op.subject for op in group))
    return Task(kind, names[0] if len(names) == 1 else f"{names[0]}..{names[-1]}", group)
