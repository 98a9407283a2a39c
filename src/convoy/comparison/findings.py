"""From the numbers of a comparison to sentences. Pure: the same comparison, the same words."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from convoy.comparison.comparison import Comparison, Outcome
from convoy.comparison.statistics import FEWEST, interval, outliers, ratio
from convoy.training.history import EpochRecord
from convoy.training.load import BUSY_CORES


@dataclass(frozen=True, slots=True)
class Findings:
    """``rows`` under ``head``: a line per strategy. ``target``: an accuracy (share), None where none was reached."""

    target: float | None
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    sentences: tuple[str, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def findings(comparison: Comparison) -> Findings:
    """Times per epoch and to the target, accuracies, and how sure each difference is. The first strategy is the one
    that the others are compared with."""
    target = comparison.target if comparison.target is not None else common_target(comparison)
    if by_chance(comparison, target):
        target = None
    sentences: list[str] = []
    reference, *others = comparison.strategies
    for other in others:
        sentences += _against(comparison, other, reference, target)
    return Findings(
        target=target,
        head=("strategy", "runs", "s per epoch (median)", "samples/s", "last accuracy", "best", _to(target)),
        rows=tuple(_row(comparison, label, target) for label in comparison.strategies),
        sentences=tuple(sentences),
        warnings=tuple(warnings(comparison)),
    )


def by_chance(comparison: Comparison, target: float | None) -> bool:
    """Whether guessing would reach the target."""
    return target is not None and comparison.chance is not None and target <= comparison.chance + 1e-9


def common_target(comparison: Comparison) -> float | None:
    """The highest whole percent of validation accuracy that every run reached."""
    best = [o.best_accuracy() for label in comparison.strategies for o in comparison.of(label)]
    known = [value for value in best if value is not None]
    if not known or len(known) < len(best):
        return None
    # A hair is added since 0.97 may be held as 0.9699999.
    target = math.floor(min(known) * 100 + 1e-9) / 100
    return target if target > 0 else None


def settled(outcome: Outcome) -> list[EpochRecord]:
    """The epochs in which the run neither began nor was resumed, where there are others: capture and measuring of cuts
    are in the time of those."""
    return [record for record in outcome.epochs if not record.began] or outcome.epochs


def warnings(comparison: Comparison) -> list[str]:
    """What makes the numbers less sure than they look."""
    found = [f"{o.strategy} with seed {o.seed} failed: {o.error}" for o in comparison.failed]
    if not comparison.finished:
        wanted = len(comparison.strategies) * len(comparison.seeds)
        ended = len([o for o in comparison.outcomes if o.status != "unfinished"])
        found.append(f"the comparison is not finished: {wanted - ended} of its {wanted} runs have not ended")
    said = {(o.strategy, message): None for o in comparison.outcomes for message in o.warnings}
    found += [f"{strategy}: {message}" for strategy, message in said]
    for outcome in comparison.outcomes:
        records = settled(outcome)
        seconds = [record.seconds for record in records]
        for place in outliers(seconds):
            times = seconds[place] / statistics.median(seconds)
            found.append(
                f"epoch {records[place].epoch} of {outcome.strategy} with seed {outcome.seed} took {times:.1f} times "
                "the median: something else may have run"
            )
    loads = [turn.other_cores for turn in comparison.turns if turn.other_cores is not None]
    busy = [load for load in loads if load > BUSY_CORES]
    if busy:
        found.append(
            f"other programs kept more than {BUSY_CORES:g} cores busy in {len(busy)} of {len(loads)} turns "
            f"({max(busy):.1f} at most): repeat it on a quiet machine"
        )
    target = comparison.target if comparison.target is not None else common_target(comparison)
    if target is not None and by_chance(comparison, target):
        found.append(
            f"{_percent(target)} is no more than guessing reaches: times to it are not compared "
            "(train longer, or give a higher --target)"
        )
    if 2 <= len(comparison.seeds) < FEWEST:
        found.append(
            "two seeds are too few for intervals of accuracies and of times to the target: ranges are given "
            "(--seeds 3 or more gives intervals)"
        )
    if len(comparison.seeds) < 2:
        found.append("one seed: differences in accuracy, and in the time to reach it, are seen once")
    return found


def _against(comparison: Comparison, label: str, reference: str, target: float | None) -> list[str]:
    """What ``label`` is beside ``reference``, over the seeds that both have."""
    theirs = {o.seed: o for o in comparison.of(reference)}
    pairs = [(o, theirs[o.seed]) for o in comparison.of(label) if o.seed in theirs]
    if not pairs:
        return [f"{label} cannot be compared with {reference}: no seed of which both have an epoch"]
    out = []
    if target is not None:
        out += _times_to(pairs, label, reference, target)
    epochs = [pair for a, b in pairs for pair in _same_epochs(a, b)]
    if epochs:
        number = "one pair" if len(epochs) == 1 else f"geometric mean of {len(epochs)} pairs"
        cold = any(record.began for pair in pairs for outcome in pair for record in settled(outcome))
        which = ", capture and measuring included" if cold else ", those in which training began left out"
        out.append(
            f"An epoch of {label} took {_times(epochs)} of the time of one of {reference} ({number} of epochs{which})"
        )
    out += _accuracy(pairs, label, reference)
    return out


def _same_epochs(a: Outcome, b: Outcome) -> list[tuple[float, float]]:
    """Seconds a sample in the epochs that both have: an epoch of unequal nodes may have more or fewer of them."""
    theirs = {record.epoch: record for record in settled(b)}
    found = []
    for ours in settled(a):
        other = theirs.get(ours.epoch)
        if other is not None and min(ours.seconds, other.seconds) > 0:
            found.append((ours.seconds / max(ours.samples, 1), other.seconds / max(other.samples, 1)))
    return found


def _times_to(pairs: Sequence[tuple[Outcome, Outcome]], label: str, reference: str, target: float) -> list[str]:
    reached = [(a.seconds_to(target), b.seconds_to(target)) for a, b in pairs]
    both = [(a, b) for a, b in reached if a is not None and b is not None and a > 0 and b > 0]
    goal = _percent(target)
    if len(both) < len(pairs):
        misses = [name for name, which in ((label, 0), (reference, 1)) if any(pair[which] is None for pair in reached)]
        seeds = f"{len(both)} of {len(pairs)} seeds" if both else "no seed"
        return [f"{' and '.join(misses)} did not always reach {goal}: both did with {seeds}"]
    return [f"{label} reached {goal} in {_times(both)} of the time of {reference} ({_seeds(len(both))})"]


def _accuracy(pairs: Sequence[tuple[Outcome, Outcome]], label: str, reference: str) -> list[str]:
    differences = [
        (x - y) * 100 for a, b in pairs if (x := a.last_accuracy()) is not None and (y := b.last_accuracy()) is not None
    ]
    if not differences:
        return []
    mean, half = interval(differences)
    bounds = (min(differences), max(differences)) if half is None else (mean - half, mean + half)
    if not any(differences):
        return [f"{label} ended with the same accuracy as {reference} ({_seeds(len(differences))})"]
    if len(differences) > 1 and bounds[0] <= 0 <= bounds[1]:
        return [
            f"The last accuracies of {label} and {reference} are not separated: "
            f"{_spread(differences, 2, sign='+')} percentage points ({_seeds(len(differences))})"
        ]
    way = "more" if mean >= 0 else "less"
    return [
        f"{label} ended with {_spread([d if mean >= 0 else -d for d in differences], 2)} percentage "
        f"points {way} accuracy than {reference} ({_seeds(len(differences))})"
    ]


def _row(comparison: Comparison, label: str, target: float | None) -> tuple[str, ...]:
    outcomes = comparison.of(label)
    wanted = len(comparison.seeds)
    records = [record for outcome in outcomes for record in settled(outcome)]
    last = [v for o in outcomes if (v := o.last_accuracy()) is not None]
    best = [v for o in outcomes if (v := o.best_accuracy()) is not None]
    to = [o.seconds_to(target) for o in outcomes] if target is not None else []
    return (
        label,
        f"{len(outcomes)}/{wanted}",
        # The lower and the higher of two middle values: of the same epoch, where all have as many samples.
        f"{statistics.median_low(r.seconds for r in records):.3g}" if records else "–",
        f"{statistics.median_high(r.samples_per_second for r in records):.0f}" if records else "–",
        _mean_percent(last),
        _mean_percent(best),
        _mean_seconds(to),
    )


def _mean_percent(shares: Sequence[float]) -> str:
    return _spread([share * 100 for share in shares], 2, " %") if shares else "–"


def _mean_seconds(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return _spread(known, 1) if known and len(known) == len(values) else "–"


def _times(pairs: Sequence[tuple[float, float]]) -> str:
    """``0.61 ± 0.03``; an interval that is far from symmetrical is written out, of too few pairs the range."""
    mean, bounds = ratio(pairs)
    if bounds is None:
        ratios = [a / b for a, b in pairs]
        return f"{mean:.2f}" if len(ratios) == 1 else f"{mean:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    low, high = bounds
    if high > 1.5 * mean:
        return f"{mean:.2f} (95 % interval {low:.2g} to {high:.2g})"
    return f"{mean:.2f} ± {(high - low) / 2:.2f}"


def _spread(values: Sequence[float], digits: int, unit: str = "", sign: str = "") -> str:
    """The mean with half its interval, or with the range where there are too few values for one."""
    mean, half = interval(values)
    text = f"{mean:{sign}.{digits}f}"
    if half is not None:
        return f"{text} ± {half:.{digits}f}{unit}"
    ends = "" if len(values) == 1 else f" ({min(values):{sign}.{digits}f} to {max(values):{sign}.{digits}f})"
    return f"{text}{unit}{ends}"


def _to(target: float | None) -> str:
    return "s to target" if target is None else f"s to {_percent(target)}"


def _percent(share: float) -> str:
    return f"{share * 100:.4g} %"


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds" + (", too few for an interval" if count < FEWEST else "")
