"""From a folder to its page on the disk."""

from __future__ import annotations

from pathlib import Path

from convoy.errors import OptionError
from convoy.report.comparison_page import COMPARISON_FILE, comparison_page, read_comparison
from convoy.report.files import read_run
from convoy.report.page import Page, render
from convoy.report.run_page import run_page
from convoy.training.files import machine_errors, write_file

REPORT_FILE = "report.html"


def write_report(folder: Path | str, output: Path | str | None = None) -> tuple[Path, tuple[str, ...]]:
    """Write the page of the run or comparison in ``folder``, there or to ``output``. Returns where it is, and what of
    the folder could not be read. Raises CheckpointError where there is neither, MachineError when it cannot write."""
    folder = Path(folder)
    target = folder / REPORT_FILE if output is None else Path(output)
    if target.is_dir():
        raise OptionError(f"{target} is a folder", hint=f"name a file, such as {target / REPORT_FILE}")
    page = read_page(folder)
    with machine_errors(target, "choose another --output" if output else "write it elsewhere with --output"):
        write_file(target, render(page))
    return target, page.problems


def read_page(folder: Path) -> Page:
    if (folder / COMPARISON_FILE).is_file():
        return comparison_page(read_comparison(folder))
    return run_page(read_run(folder))
