"""Exit codes, error lines, and how quick the command is to answer."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

import convoy as package
from convoy.cli import app
from convoy.errors import Diverged, InputError, WorkerFailed

VERBS = ("train", "plan", "evaluate", "predict", "export", "compare", "report", "simulate", "doctor")


def answer(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(arguments: object) -> int:
        raise error

    monkeypatch.setattr(app, "run", fail)


def test_help_names_the_verbs_that_there_are_and_no_others(convoy: Any) -> None:
    shown = convoy("--help")
    assert shown.code == 0
    for verb in VERBS:
        assert f" {verb} " in shown.out
    assert set(app._VERBS) == set(VERBS)


def test_version(convoy: Any) -> None:
    assert convoy("--version").out.strip() == package.__version__


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(convoy: Any, verb: str) -> None:
    shown = convoy(verb, "--help")
    assert shown.code == 0
    assert f"convoy {verb}" in shown.out and "--json" in shown.out


@pytest.mark.smoke
def test_help_is_quick_and_does_not_import_torch() -> None:
    seconds = []
    for _ in range(3):
        before = os.times()
        done = subprocess.run([sys.executable, "-m", "convoy.cli.main", "--help"], capture_output=True, text=True)
        after = os.times()
        # CPU seconds: what else runs here should not matter.
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
        assert done.returncode == 0 and "doctor" in done.stdout
    assert min(seconds) < 0.8  # 0.27 on an idle core, the bar there is 0.4
    code = "import sys; from convoy.cli.main import main; main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "sentence", "hint"),
    [
        (["trian"], 'unknown command "trian"', "did you mean train?"),
        (["frobnicate"], 'unknown command "frobnicate"', "convoy --help lists"),
        (["train", "lenet5", "--batchsize", "3"], "unknown option: --batchsize", "did you mean --batch-size?"),
        (["train", "lenet5", "extra"], "unused", "convoy train --help lists"),
        (["train", "lenet5", "--epochs"], "--epochs requires an argument", "convoy train --help lists"),
        (["train"], "no model was named", "convoy train lenet5"),
        (["export", "run"], "OUT requires an argument", "convoy export --help lists"),
    ],
)
def test_wrong_usage(convoy: Any, arguments: list[str], sentence: str, hint: str) -> None:
    done = convoy(*arguments)
    assert done.code == 2 and done.out == ""
    assert sentence in done.error
    assert hint in done.hint


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("it is\n wrong", hint="mend it"), 2, "it is wrong"),
        (Diverged("the loss is nan"), 1, "the loss is nan"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 1, "there is not enough memory"),
        (ZeroDivisionError("division by zero"), 1, "unexpected ZeroDivisionError: division by zero"),
    ],
)
def test_exit_codes(convoy: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, line: str) -> None:
    answer(monkeypatch, error)
    done = convoy("doctor")
    assert done.code == code and done.out == ""
    assert done.error == line


def test_a_failed_worker_shows_the_grid(convoy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, WorkerFailed("F1.2 failed", grid="cycle 0\nworker 1  >F1.2<"))
    done = convoy("train")
    assert "worker 1  >F1.2<" in done.err
    assert done.error == "F1.2 failed"


def test_notes_say_where_and_a_traceback_of_another_process_is_for_debug(
    convoy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = Diverged("the gradients are not finite")
    error.add_note("In the actor:\nTraceback (most recent call last):\n  File host.py")
    error.add_note("worker 1, in the backward of batch 8 at stage 1")
    answer(monkeypatch, error)
    done = convoy("doctor")
    assert done.error == "the gradients are not finite" and "actor" not in done.err
    assert "  seen by worker 1, in the backward of batch 8 at stage 1\n" in done.err
    assert "In the actor" in convoy("doctor", "--debug").err


def test_the_traceback_only_with_debug(convoy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, InputError("wrong"))
    assert "Traceback" not in convoy("doctor").err
    assert "Traceback" in convoy("doctor", "--debug").err


@pytest.mark.smoke
def test_a_reader_that_goes_away_is_no_traceback() -> None:
    code = "import sys; from convoy.cli.main import main; sys.exit(main(['--help']))"
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
