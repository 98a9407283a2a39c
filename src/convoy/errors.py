"""What can go wrong, sorted by who can mend it: your input, the machine, or us.

Every error carries one sentence (the message, with the values that were given) and, where there is one, a
``hint``: the next step. The command prints both and leaves with ``exit_code``.
"""

from __future__ import annotations

LOWER_RATE = "lower the learning rate, or bound the gradient norm with clip"
RESUME = "go on from the last checkpoint, where one was written"
"""A hint of those who do not know the run's folder; the Trainer says in its place what the run has."""


class ConvoyWarning(UserWarning):
    """What a run warns of, where no callback and no sink hears of it."""


class ConvoyError(Exception):
    """Base of all errors that convoy raises on purpose."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


# --- your input: exit code 2 ---------------------------------------------------------------------------------


class InputError(ConvoyError):
    """Something that was asked for cannot be done as asked."""

    exit_code = 2


class OptionError(InputError):
    """An option or field has a value that makes no sense, alone or beside another."""


class ModelError(InputError):
    """The model cannot be captured, cut or built."""


class DataError(InputError):
    """A data set is missing, damaged or of the wrong shape."""


class CheckpointError(InputError):
    """A checkpoint or a run folder cannot be read, or does not belong to this run."""


# --- the machine ---------------------------------------------------------------------------------------------


class MachineError(ConvoyError):
    """The machine refuses: a folder that cannot be written, a full disk, a device that is not there."""

    exit_code = 2


# --- a run that failed: exit code 1 --------------------------------------------------------------------------


class RunError(ConvoyError):
    """Training began and could not go on."""


class WorkerFailed(RunError):
    """A worker raised. ``action`` names stage and batch; the cause is chained; ``grid`` draws the schedule."""

    def __init__(self, message: str, *, hint: str | None = None, action: str = "", grid: str = "") -> None:
        super().__init__(message, hint=hint)
        self.action = action
        self.grid = grid


class Diverged(RunError):
    """The loss, a gradient or a weight is not finite any more, or the loss has grown absurd.

    ``batch``: the mini-batch that shows it, None where it is not one.
    """

    def __init__(self, message: str, *, hint: str | None = LOWER_RATE, batch: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.batch = batch


class Stalled(RunError):
    """Nothing moved for longer than the watchdog allows; the message says who waits for what."""


# --- our bug -------------------------------------------------------------------------------------------------


class InternalError(ConvoyError):
    """A rule of convoy's own was broken (a race, a version out of order). Please report it."""


def hint_for(error: BaseException) -> str | None:
    """A next step where ``error`` is PyTorch's for a label that the model has no output for; else None."""
    if isinstance(error, IndexError) and str(error).startswith("Target ") and "out of bounds" in str(error):
        return "the data has labels that the model has no output for: give it as many outputs as there are classes"
    return None
