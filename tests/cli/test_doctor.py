"""``convoy doctor`` finds what is wrong, and only that."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest

from convoy.cli import doctor


def spin(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def test_a_machine_that_is_fit(convoy: Any) -> None:
    done = convoy("doctor")
    assert done.code == 0 and done.out.splitlines()[-1] == "fit for training"
    assert list(Path().iterdir()) == []
    values = convoy("doctor", "--json").json
    assert values["fit"] is True
    wanted = {"versions", "torch", "cores", "other load", "threads", "memory", "CUDA", "timing", "run folder", "extras"}
    assert {finding["what"] for finding in values["findings"]} == wanted


def test_quiet_leaves_out_what_is_well(convoy: Any) -> None:
    assert not any(line.startswith("ok") for line in convoy("doctor", "--quiet").out.splitlines())


def test_a_run_folder_that_cannot_be_written(convoy: Any) -> None:
    Path("file").write_text("")
    done = convoy("doctor", "--run-dir", "file/runs")
    assert done.code == 1
    assert "not fit for training" in done.out and "cannot be written" in done.out


@pytest.mark.parametrize(("version", "verdict"), [("2.10.1", "bad"), ("2.11.0+cpu", "ok"), ("2.14.0", "bad")])
def test_versions_of_torch(monkeypatch: pytest.MonkeyPatch, version: str, verdict: str) -> None:
    monkeypatch.setattr(doctor, "version", lambda name: version)
    assert doctor._torch().verdict == verdict


def test_another_program_on_a_core_is_noticed() -> None:
    """CPU seconds that one busy process used, by two clocks; what else runs on this machine can only add."""
    process = multiprocessing.get_context("fork").Process(target=spin, args=(1.5,))
    process.start()
    try:
        before = os.times()
        found = doctor.busy_cores(0.8)
    finally:
        process.kill()
        process.join()
    assert found is not None and before is not None
    assert found > 0.3


def test_ones_own_work_is_not_another_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """All CPU seconds between the two looks are this process's own."""
    moments = iter([(0.0, 10.0), (1.5, 11.5)])
    own: list[float] = []

    def read(self: Path) -> str:
        mine, total = next(moments)
        own.append(mine)
        ticks = int(total * os.sysconf("SC_CLK_TCK"))
        return f"cpu {ticks} 0 0 500 0 0 0 0 0 0\n"

    processed = iter([0.0, 1.5])
    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.setattr(doctor.time, "process_time", lambda: next(processed))
    monkeypatch.setattr(doctor.time, "sleep", lambda seconds: None)
    assert doctor.busy_cores(1.0) == 0.0


def test_threads_that_do_not_fit_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(doctor, "available_cores", lambda: 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert doctor._threads().verdict == "note" and "--threads 8" in doctor._threads().text
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert doctor._threads().verdict == "ok"


def test_timer_noise_is_a_share() -> None:
    assert 0 <= doctor.timer_noise() < 100
