"""Going on with a run: after its end, after Ctrl-C, and what may change on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

LONGER = ("lenet5", "--limit", "96", "--batch-size", "8", "--epochs", "3", "--lr", "0.02", "--name", "one")
PIPELINE = ("--strategy", "pipelined", "--ppv", "1")


def weights(run: Path) -> dict[str, torch.Tensor]:
    latest = max((run / "checkpoints").iterdir())
    return load_file(latest / "model.safetensors")


def test_a_finished_run_has_nothing_left_to_do(convoy: Any, trained: Path) -> None:
    shutil.copytree(trained, "runs/one")
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    done = convoy("train", "--resume", "runs/one")
    assert done.code == 0 and "nothing left to do" in done.err
    assert "accuracy" in done.out
    assert {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "option", [("--lr", "1"), ("--batch-size", "16"), ("--strategy", "pipelined"), ("--seed", "4")]
)
def test_what_decides_the_numbers_may_not_change(convoy: Any, trained: Path, option: tuple[str, str]) -> None:
    done = convoy("train", "--resume", trained, *option)
    assert done.code == 2
    assert done.error.startswith(f"{option[0]} {option[1]}") and "differs from" in done.error


def test_more_epochs_only_where_the_learning_rate_is_constant(convoy: Any, trained: Path) -> None:
    done = convoy("train", "--resume", trained, "--epochs", "3")
    assert done.code == 2 and "cosine schedule" in done.error
    constant = (*LONGER[:-2], "--lr-schedule", "constant")
    assert convoy("train", *constant, "--name", "whole", "--quiet").code == 0
    shorter = tuple("1" if a == "3" else a for a in constant)
    assert convoy("train", *shorter, "--name", "part", "--quiet").code == 0
    assert convoy("train", "--resume", "runs/part", "--epochs", "3", "--json", "--quiet").json["epochs"] == 3
    whole, part = weights(Path("runs/whole")), weights(Path("runs/part"))
    assert all(torch.equal(whole[name], part[name]) for name in whole)


def test_resume_and_config_exclude_each_other(convoy: Any, trained: Path) -> None:
    done = convoy("train", "--resume", trained, "--config", trained / "config.toml")
    assert done.code == 2 and "--resume and --config" in done.error


def test_resume_from_one_checkpoint(convoy: Any, trained: Path) -> None:
    """The first of two epochs' checkpoints: the second epoch is trained again, to the same bits."""
    shutil.copytree(trained, "runs/one")
    first, second = sorted(Path("runs/one/checkpoints").iterdir())
    expected = load_file(second / "model.safetensors")
    shutil.rmtree(second)
    assert convoy("train", "--resume", first, "--quiet").code == 0
    again = weights(Path("runs/one"))
    assert all(torch.equal(expected[name], again[name]) for name in expected)


@pytest.mark.parametrize("strategy", [(), PIPELINE], ids=["sequential", "pipelined"])
def test_ctrl_c_leaves_a_checkpoint_that_resumes_to_the_same_bits(
    convoy: Any, tmp_path: Path, strategy: tuple[str, ...]
) -> None:
    assert convoy("train", *LONGER, *strategy, "--run-dir", "whole", "--quiet").code == 0
    code = (
        "import sys, time, convoy.data.loader as loader\n"
        "make = loader.Loader.fetch\n"
        "def slow(self, *given):\n"
        "    time.sleep(0.05)\n"
        "    return make(self, *given)\n"
        "loader.Loader.fetch = slow\n"
        "from convoy.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "train", *LONGER, *strategy], stderr=subprocess.PIPE, text=True, env=os.environ
    )
    try:
        metrics, deadline = Path("runs/one/metrics.jsonl"), time.monotonic() + 60
        while not (metrics.exists() and metrics.read_text().count('"loss"') > 3):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err and "error: interrupted" in err
    assert "hint: go on with: convoy train --resume runs/one" in err
    steps = metrics.read_text().count('"correct"')
    assert 3 < steps < 36, "it was interrupted in the middle"
    assert convoy("train", "--resume", "runs/one", "--quiet").code == 0
    decisions = [json.loads(line) for line in Path("runs/one/events.jsonl").read_text().splitlines()]
    reasons = [e["data"]["reason"] for e in decisions if e["kind"] == "decision" and e["name"] == "drain"]
    if "interrupt" in reasons:  # within an epoch: one drain more than the undisturbed run had
        return
    whole, resumed = weights(Path("whole/one")), weights(Path("runs/one"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
