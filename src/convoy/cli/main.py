"""Entry point of the command: exit code 0, 2 for what was asked wrongly, 1 for what failed, 130 after Ctrl-C."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from convoy.cli.errors import report


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out one command line and return its exit code. Without ``arguments``: those of the process."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    try:
        from convoy.cli.app import run

        code = run(given)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read our output went away, as in: convoy ... | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Exception, KeyboardInterrupt) as error:
        return report(error, debug=debug)


if __name__ == "__main__":
    sys.exit(main())
