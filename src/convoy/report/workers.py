"""What workers did: a few steps on the clock, and how stale the weights were that they read."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence

from convoy.drawing.chart import Chart, Line
from convoy.drawing.lanes import Lanes, Span
from convoy.report.curves import thinned
from convoy.report.files import Action, RunFiles

STEPS_SHOWN = 5
_MOST_BARS = 1500
KINDS = {
    "F": "forward",
    "B": "backward",
    "I": "input gradient",
    "G": "weight gradient",
    "U": "update",
    "L": "loss",
    "E": "enter",
    "P": "predict",
    "C": "compare",
    "M": "remember",
    "X": "correct",
    "T": "sum gradients",
    "A": "add gradients",
    "R": "running statistics",
    "J": "join tiles",
}
"""The kinds of action that strategies have. One that is not here is shown by its letter."""


def complete_batches(actions: Sequence[Action]) -> list[list[int]]:
    """Stretches of mini-batches that follow each other and whose actions are all there. Events hold actions in
    samples; a mini-batch with fewer actions than the others is one that the sample cut."""
    counts = Counter(action.batch for action in actions if action.lane != "driver")
    if not counts:
        return []
    whole = statistics.mode(sorted(counts.values(), reverse=True))
    stretches: list[list[int]] = []
    for batch in sorted(batch for batch, count in counts.items() if count >= whole):
        if stretches and batch == stretches[-1][-1] + 1:
            stretches[-1].append(batch)
        else:
            stretches.append([batch])
    return stretches


def shown_batches(actions: Sequence[Action], most: int = STEPS_SHOWN) -> list[int]:
    """The mini-batches to draw: up to ``most`` in a row. The first ones of a run are slow, so from the middle of the
    longest stretch, the later one where two are as long."""
    stretches = complete_batches(actions)
    if not stretches:
        return []
    longest = max(stretches, key=lambda s: (min(len(s), most), s[0] > 0, len(s), s[-1]))
    if len(longest) <= most:
        return longest
    # Ones near the end of what is there have their neighbours there too, and are not of a cold start.
    begin = min(len(longest) * 2 // 3, len(longest) - most)
    return longest[begin : begin + most]


def timeline(run: RunFiles) -> Lanes | None:
    """A few steps: who worked on what, and who waited. None where no action was recorded."""
    actions = [action for action in run.actions if action.lane != "driver" and action.end > action.start]
    batches = shown_batches(actions)
    if not batches:
        return None
    own = [action for action in actions if action.batch in set(batches)]
    # After a resume the clock and the actions begin anew; the last ones told are drawn.
    began = max(action.start for action in own if action.batch == batches[0])
    own = [a for a in own if a.start >= began - 60] or own
    start, end = min(a.start for a in own), max(a.end for a in own)
    seen = [a for a in actions if a.end > start and a.start < end][:_MOST_BARS]
    kinds = [kind for kind in KINDS if any(a.kind == kind for a in seen)]
    kinds += sorted({a.kind for a in seen} - set(kinds))
    spans = tuple(
        Span(
            lane=a.lane,
            start=a.start,
            end=a.end,
            name=a.label,
            title=f"{KINDS.get(a.kind, a.kind)} of {a.subject}, mini-batch {a.batch}: {(a.end - a.start) * 1e3:.2f} ms",
            family=kinds.index(a.kind),
        )
        for a in seen
    )
    families = tuple((i, KINDS.get(kind, kind)) for i, kind in enumerate(kinds))
    which = f"mini-batch {batches[0]}" if len(batches) == 1 else f"mini-batches {batches[0]} to {batches[-1]}"
    return Lanes(f"Timeline of {which}", start, end, spans, families)


def stalenesses(actions: Sequence[Action]) -> dict[str, list[tuple[int, int]]]:
    """Weights → (mini-batch, updates that fell between its forward pass and its own update), as observed."""
    read: dict[tuple[str, int], int] = {}
    found: dict[str, dict[int, int]] = defaultdict(dict)
    for action in actions:
        if action.kind == "F":
            for name, version in action.reads.items():
                read[name, action.batch] = min(version, read.get((name, action.batch), version))
        for name, version in action.writes.items():
            before = read.get((name, action.batch))
            if before is not None:
                found[name][action.batch] = version - 1 - before
    return {name: sorted(values.items()) for name, values in sorted(found.items())}


def staleness(run: RunFiles) -> Chart:
    """Staleness over mini-batches, of all weights or, where they are many, of those that were ever stale. Empty where
    none was."""
    every = stalenesses(run.actions)
    stale = {name: values for name, values in every.items() if any(v for _, v in values)}
    if stale and len(every) <= 8:
        stale = every
    lines = []
    for name, values in list(stale.items())[:8]:
        x, y = thinned([float(b) for b, _ in values], [float(v) for _, v in values])
        lines.append(Line(f"weights of {name.removeprefix('W')}", x, y, points=len(x) < 40))
    return Chart("Staleness", "mini-batch", "updates between reading and writing", tuple(lines), zero=True)


def mean_staleness(run: RunFiles) -> list[tuple[str, float, int, int]]:
    """Name, mean, greatest, and how many mini-batches were seen."""
    return [
        (name, statistics.fmean(v for _, v in values), max(v for _, v in values), len(values))
        for name, values in stalenesses(run.actions).items()
    ]


def action_seconds(run: RunFiles) -> dict[tuple[str, str], float]:
    """(kind, subject) → median seconds of a mini-batch's actions; cold ones (mini-batch 0) are left out."""
    sums: dict[tuple[str, str], dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for action in run.actions:
        sums[action.kind, action.subject][action.batch] += action.end - action.start
    medians = {}
    for key, by_batch in sums.items():
        warm = [seconds for batch, seconds in by_batch.items() if batch > 0] or list(by_batch.values())
        medians[key] = statistics.median(warm)
    return medians
