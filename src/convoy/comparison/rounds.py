"""The rounds of a comparison: an epoch of each strategy, in turns, written down after each round."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from convoy.comparison.comparison import COMPARISON_FILE, Comparison, Outcome, Turn
from convoy.comparison.runner import Runner
from convoy.comparison.turns import Paused, order
from convoy.errors import ConvoyError
from convoy.events.plain import plain
from convoy.training.files import machine_errors, write_json
from convoy.training.interrupt import Interrupt
from convoy.training.load import OtherLoad


class Rounds:
    """Fills a comparison's outcomes and turns. ``kept``: whether comparison.json is written into ``place``."""

    def __init__(self, comparison: Comparison, place: Path, kept: bool, progress: Callable[[str], None] | None) -> None:
        self._comparison = comparison
        self._place = place
        self._kept = kept
        self._tell = progress or (lambda line: None)

    def run(self, seed: int, number: int, runner: Runner, interrupt: Interrupt) -> None:
        """All strategies with one seed, the ``number``-th; what is finished already stays."""
        comparison = self._comparison
        outcomes = {label: comparison.outcome(label, seed) for label in comparison.strategies}
        unfinished = {label: outcome for label, outcome in outcomes.items() if outcome.status == "unfinished"}
        working = runner.begin(seed, list(unfinished))
        done = min((len(outcome.epochs) for outcome in unfinished.values()), default=0)
        try:
            while working:
                for place, label in enumerate(order(list(outcomes), done + number)):
                    # A resumed one may be ahead of the others: they catch up.
                    if label in working and len(outcomes[label].epochs) <= done:
                        self._turn(working, outcomes[label], Turn(seed, done + 1, place, label, None), interrupt)
                done += 1
                self.write()
        except BaseException:
            for paused in working.values():
                paused.stop()
            raise

    def _turn(self, working: dict[str, Paused], outcome: Outcome, turn: Turn, interrupt: Interrupt) -> None:
        load, before = OtherLoad(), len(outcome.epochs)
        paused = working[outcome.strategy]
        more = paused.turn(lambda: interrupt.requested)
        if len(outcome.epochs) > before:
            self._comparison.turns.append(Turn(turn.seed, turn.round, turn.place, turn.strategy, load.cores()))
            self._tell(_line(outcome, self._comparison.budget))
        if not more and (paused.error is not None or not interrupt.requested):
            del working[outcome.strategy]
            self._ended(paused, outcome)
        interrupt.check()

    def _ended(self, paused: Paused, outcome: Outcome) -> None:
        if paused.error is None:
            outcome.status = "finished"
            return
        error = paused.error
        said = error.message if isinstance(error, ConvoyError) else f"{type(error).__name__}: {error}"
        outcome.status, outcome.error = "failed", " ".join(said.split())
        self._tell(f"{outcome.strategy}, seed {outcome.seed}, failed: {outcome.error}")

    def write(self) -> None:
        """comparison.json, as far as it is."""
        if self._kept:
            path = self._place / COMPARISON_FILE
            with machine_errors(path):
                self._place.mkdir(parents=True, exist_ok=True)
                write_json(path, plain(self._comparison.to_dict()))


def _line(outcome: Outcome, budget: Mapping[str, float]) -> str:
    """``epoch 3/10 · sequential, seed 0 · 96.10 % · 0.9 s``."""
    last = outcome.epochs[-1]
    goal = f"/{budget['epochs']:g}" if "epochs" in budget else ""
    accuracy = last.validation_accuracy
    reached = f"loss {last.train_loss:.4f}" if accuracy is None else f"{accuracy * 100:.2f} %"
    return f"epoch {last.epoch}{goal} · {outcome.strategy}, seed {outcome.seed} · {reached} · {last.seconds:.1f} s"
