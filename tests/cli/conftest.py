"""Running the command inside the test's process, and one small trained network for all tests of a session."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from convoy.cli.main import main

SMALL = ("lenet5", "--data", "digits", "--limit", "96", "--batch-size", "32", "--epochs", "2", "--lr", "0.02")


@dataclass(frozen=True)
class Result:
    """What a command line left: exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        assert self.out.count("\n") == 1, "one JSON object on one line"
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The line after ``error:``; there is exactly one, and no traceback."""
        assert "Traceback" not in self.err
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        return lines[0].removeprefix("error: ")

    @property
    def hint(self) -> str:
        lines = [line for line in self.err.splitlines() if line.startswith("hint: ")]
        assert len(lines) == 1, self.err
        return lines[0].removeprefix("hint: ")


Run: TypeAlias = Callable[..., Result]


def run(*arguments: object) -> Result:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return Result(code, out.getvalue(), err.getvalue())


@pytest.fixture
def convoy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """``convoy("train", "lenet5", …)`` in an empty folder, without CONVOY_DATA."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CONVOY_DATA", raising=False)
    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder. Not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    before = os.getcwd()
    os.chdir(folder)
    try:
        done = run("train", *SMALL, "--name", "one", "--quiet")
    finally:
        os.chdir(before)
    assert done.code == 0, done.err
    return folder / "runs" / "one"
