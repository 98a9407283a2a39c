"""What only the trainer knows of a failure: what of the strategy to suspect, and where the run can be taken up."""

from __future__ import annotations

from convoy.errors import RESUME, ConvoyError, Diverged
from convoy.training.checkpoint import names_in
from convoy.training.run_dir import RunDirectory

_UNTRAINED = "no weight has been updated yet: look for NaN and huge values in the data and in the model's own weights"


def advise(error: BaseException, suspects: str | None, run: RunDirectory | None) -> None:
    """Complete the hint of ``error``. ``suspects``: what the strategy in force does to the step."""
    if isinstance(error, Diverged):
        error.hint = _UNTRAINED if error.batch == 0 else "; ".join(filter(None, (suspects, error.hint)))
    elif isinstance(error, ConvoyError) and error.hint is not None:
        error.hint = error.hint.replace(RESUME, _where_to_resume(run))


def _where_to_resume(run: RunDirectory | None) -> str:
    if run is None:
        return "nothing was saved to go on from: run_dir and save_every write checkpoints"
    if not names_in(run.checkpoints):
        return "no checkpoint was written yet, so start again; --save-every (save_every=) says how often one is"
    return f"go on from the run's last checkpoint: convoy train --resume {run.path}, or Trainer.load"
