"""From what went wrong to the lines a person reads and an exit code."""

from __future__ import annotations

import sys
import traceback

from convoy.errors import ConvoyError

INTERRUPTED = 130


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in a run; ``hint`` says how to go on."""

    def __init__(self, hint: str | None = None) -> None:
        super().__init__()
        self.hint = hint


def report(error: BaseException, *, debug: bool = False) -> int:
    """Say on stderr what went wrong and return the exit code."""
    message, hint, code = describe(error)
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    print(f"error: {_line(message)}", file=sys.stderr)
    for note in getattr(error, "__notes__", ()):  # where in the schedule a worker found it
        if "\n" not in note:  # the traceback in an actor is for --debug
            print(f"  seen by {note}", file=sys.stderr)
    if hint:
        print(f"hint: {_line(hint)}", file=sys.stderr)
    return code


def describe(error: BaseException) -> tuple[str, str | None, int]:
    """Sentence, next step and exit code."""
    if isinstance(error, ConvoyError):
        hint = error.hint
        grid = getattr(error, "grid", "")
        if grid:
            print(grid, file=sys.stderr)
        return error.message, hint, error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", getattr(error, "hint", None), INTERRUPTED
    if type(error).__module__.startswith("cyclopts"):
        return usage(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "there is not enough memory", "use a smaller --batch-size", 1
    return f"unexpected {type(error).__name__}: {error}", "this is a bug; run it again with --debug and report it", 1


def usage(error: BaseException) -> tuple[str, str, int]:
    """What cyclopts found wrong with the command line."""
    from cyclopts.exceptions import CycloptsError

    assert isinstance(error, CycloptsError)
    error.verbose = False
    message, _, near = " ".join(str(error).split()).partition(" Did you mean ")
    verb = "".join(f" {name}" for name in error.command_chain or ())
    suggestion = near.partition("?")[0].strip('"')
    hint = f"did you mean {suggestion}?" if suggestion else f"convoy{verb} --help lists what there is"
    return message[:1].lower() + message[1:].rstrip("."), hint, 2


def _line(text: str) -> str:
    """In one line, whatever it was made of."""
    return " ".join(text.split())
