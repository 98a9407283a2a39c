"""``convoy report``: one HTML page for a run or a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from convoy.cli.flags import Debug, Json, Quiet
from convoy.cli.output import note, result


def report(
    run: Annotated[Path, Parameter(help="The folder of a run or of a comparison.", metavar="RUN|COMPARISON")],
    *,
    output: Annotated[
        Path | None, Parameter(help="Where to write the page. By default report.html in the folder.", metavar="FILE")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Write one HTML page with the curves, times, plan and configuration of a run, or of a comparison."""
    from convoy.report.write import write_report

    path, problems = write_report(run, output)
    for problem in problems:
        note(f"note: {problem}", quiet=quiet)
    result({"report": str(path), "problems": list(problems)}, str(path), as_json=json)
    return 0
