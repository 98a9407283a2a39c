"""The comparison itself: every strategy trains the same work, an epoch each in turns."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from convoy.comparison.comparison import COMPARISON_FILE, Comparison
from convoy.comparison.rounds import Rounds
from convoy.comparison.runner import Runner
from convoy.comparison.spec import labelled
from convoy.comparison.workload import MakeWorkload
from convoy.errors import CheckpointError, OptionError
from convoy.events.plain import plain
from convoy.strategies.base import Settings, Strategy
from convoy.strategies.registry import strategy_values
from convoy.training.callbacks import check_count
from convoy.training.interrupt import Interrupt
from convoy.training.run_dir import environment


def compare(
    workload: MakeWorkload,
    strategies: Sequence[Strategy | str] | Mapping[str, Strategy | str],
    *,
    epochs: int | None = None,
    minutes: float | None = None,
    seeds: int | Sequence[int] = 1,
    target: float | None = None,
    directory: Path | str | None = None,
    settings: Settings | None = None,
    title: str | None = None,
    progress: Callable[[str], None] | None = None,
    config: Mapping[str, Any] | None = None,
    run_config: Callable[[str, int], Mapping[str, Any]] | None = None,
    chance: float | None = None,
    begun: Callable[[Path], object] | None = None,
) -> Comparison:
    """Train the same work under several strategies, fairly, and say what the difference is.

    - ``workload(seed)`` builds model, loss, optimizer and data anew; equal seeds must give equal ones.
    - ``strategies``: instances or texts such as ``"pipelined:stages=2,clock=1f1b"``, in a list, or by label in a
      mapping. The first is what the others are compared with.
    - The budget is ``epochs`` or ``minutes`` of training (validation not counted; whole epochs, to the first that ends
      past it).
    - ``seeds``: how many (0, 1, …), or which.
    - Strategies take turns epoch by epoch, in an order that rotates, so that a machine that slows down slows all.
      Each run equals, bit for bit, one that had the process to itself.
    - ``directory``: where runs, checkpoints and comparison.json go; one that holds a comparison is gone on with.
      Without, nothing is kept but what is returned.
    - ``chance``: the accuracy of guessing, such as 0.1; the time to a target that is no higher is not compared.
    - ``begun`` is called with the folder of every run that begins or goes on.

    A strategy that fails ends alone; the others go on. Ctrl-C ends all after their mini-batch, with checkpoints.
    Raises OptionError, CheckpointError, MachineError.
    """
    entrants = labelled(strategies)
    budget = _budget(entrants, epochs, minutes)
    numbers = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not numbers or len(set(numbers)) < len(numbers):
        raise OptionError(f"seeds is {seeds!r}, but must be a number of at least 1, or different seeds")
    if target is not None and not 0 < target <= 1:
        raise OptionError(f"target is {target!r}, but an accuracy is a share above 0 and at most 1")
    found = Comparison(
        title=title or "comparison",
        strategies={label: plain(strategy_values(strategy)) for label, strategy in entrants.items()},
        budget=budget,
        seeds=numbers,
        target=target,
        environment=environment(),
        config=dict(config or {}),
        chance=chance,
    )
    with contextlib.ExitStack() as stack:
        kept = directory is not None
        place = Path(directory) if directory is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if (place / COMPARISON_FILE).exists():
            _take_up(found, place)
        rounds = Rounds(found, place, kept, progress)
        runner = Runner(found, entrants, workload, settings or Settings(), place, run_config, begun)
        try:
            with Interrupt() as interrupt:
                for number, seed in enumerate(numbers):
                    rounds.run(seed, number, runner, interrupt)
        finally:
            rounds.write()
    return found


def _budget(entrants: Mapping[str, Strategy], epochs: int | None, minutes: float | None) -> dict[str, float]:
    """The budget, checked."""
    if (epochs is None) == (minutes is None):
        given = "neither epochs nor minutes is" if epochs is None else "both epochs and minutes are"
        raise OptionError(f"{given} given", hint="give the budget of every run: epochs=10, or minutes=5")
    if epochs is not None:
        check_count("epochs", epochs)
        return {"epochs": epochs}
    assert minutes is not None
    if not minutes > 0:
        raise OptionError(f"minutes is {minutes!r}, but must be above 0")
    for label, strategy in entrants.items():
        if isinstance(getattr(strategy, "switch", None), float):
            raise OptionError(
                f"{label} switches after a share of the epochs, and with minutes their number is not known",
                hint="switch after a number of epochs, or give epochs",
            )
    return {"minutes": minutes}


def _take_up(found: Comparison, place: Path) -> None:
    """Go on with the comparison in ``place``; its failed runs are tried again. Raises OptionError where it is another
    one, CheckpointError where it cannot be read."""
    before = read_comparison(place)
    for name in ("strategies", "budget"):
        old, new = getattr(before, name), getattr(found, name)
        if old != new:
            raise OptionError(
                f"the comparison in {place} has other {name}: {old}, not {new}", hint="choose another directory"
            )
    found.turns = before.turns
    for outcome in before.outcomes:
        if outcome.seed in found.seeds:
            if outcome.status == "failed":
                outcome.status, outcome.error = "unfinished", None
            found.outcomes.append(outcome)


def read_comparison(place: Path | str) -> Comparison:
    """The comparison in a folder. Raises CheckpointError."""
    path = Path(place) / COMPARISON_FILE
    try:
        return Comparison.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise CheckpointError(f"{place} holds no {COMPARISON_FILE}", hint="give the folder of a comparison") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
