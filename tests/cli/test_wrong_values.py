"""Everything that can be asked wrongly: one clear line, a hint, exit code 2, and nothing left behind."""

from __future__ import annotations

import errno
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

SMALL = ("--data", "digits", "--limit", "64", "--batch-size", "32", "--epochs", "1")
PIPELINE = ("--strategy", "pipelined")


@pytest.mark.parametrize(
    ("arguments", "sentence", "hint"),
    [
        (("lenet6", *SMALL), "no network named 'lenet6'", "did you mean lenet5"),
        (("nowhere:build", *SMALL), "no module named nowhere", "current directory"),
        (("os:getcwd", *SMALL), "not a torch.nn.Module", "network"),
        (("lenet5", "--data", "mnits"), "no data set of the kind 'mnits'", "did you mean 'mnist'?"),
        (("lenet5", "--data", "mnist:none"), "'none' does not exist", "mnist:"),
        (("lenet5", "--data", "cifar10"), "'./data' does not exist", "CONVOY_DATA"),
        (("lenet5", "--batch-size", "0"), "--batch-size is 0, but must be at least 1", "64"),
        (("lenet5", "--lr", "-0.1"), "--lr is -0.1, but must be greater than 0", "0.05"),
        (("lenet5", "--lr", "nan"), "--lr is 'nan'", "0.05"),
        (("lenet5", "--epochs", "0"), "--epochs is 0, but must be at least 1", "10"),
        (("lenet5", "--threads", "0"), "--threads is 0, but must be at least 1", "--threads 2"),
        (("lenet5", "--strategy", "pipelind"), "'pipelind' is unknown", "did you mean 'pipelined'?"),
        (("lenet5", "--stages", "2"), "--stages does not apply to strategy sequential", "--strategy pipelined"),
        (("lenet5", *SMALL, *PIPELINE, "--stages", "99"), "99 stages need 98 cuts", "ask for at most"),
        (("lenet5", *SMALL, *PIPELINE, "--stages", "0"), "stages is 0", "at least 1"),
        (("lenet5", *SMALL, *PIPELINE, "--ppv", "9"), "ppv [9] goes past the last place", "from 1 to 4"),
        (("lenet5", *SMALL, *PIPELINE, "--ppv", "3,1"), "[3, 1]", "ppv"),
        (("lenet5", *SMALL, *PIPELINE, "--ppv", "x"), "--ppv is 'x', but must be whole numbers", "--ppv 7,13"),
        (("lenet5", *SMALL, *PIPELINE, "--cuts", "conv9"), "'conv9'", "conv2"),
        (("lenet5", *SMALL, *PIPELINE, "--ppv", "1", "--stages", "2"), "stages and ppv", "only one"),
        (("lenet5", *SMALL, *PIPELINE, "--clock", "2f2b"), "'2f2b'", "1f1b"),
        (("lenet5", *SMALL, *PIPELINE, "--correction", "magic"), "magic", "spike"),
        (("lenet5", *SMALL, *PIPELINE, "--max-memory", "1kB"), "max_memory is 1.0 kB", "1f1b"),
        (("lenet5", *SMALL, "--max-memory", "1GB"), "--max-memory does not apply to strategy sequential", "pipelined"),
        (("lenet5", *SMALL, "--strategy", "hybrid", "--ppv", "1"), "when to switch", "batch:400"),
        (("lenet5", *SMALL, "--strategy", "hybrid", "--switch", "x"), "'x'", "stall"),
        (("lenet5", "--device", "tpu9"), "'tpu9', which is no device", "cuda"),
        (("lenet5", "--device", "cuda:99"), "'cuda:99'", "convoy doctor"),
        (("lenet5", *SMALL, "--name", "a/b"), "'a/b' is no folder name", "slashes"),
        (("lenet5", *SMALL, "--image-size", "8"), "lenet5", "28"),
        (("lenet5", "--config", "none.toml"), "no config file none.toml", "--config"),
        (("--resume", "none"), "none", "run folder"),
        (("lenet5", "--weights", "none"), "none", "run folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_values(convoy: Any, tmp_path: Path, arguments: tuple[str, ...], sentence: str, hint: str) -> None:
    done = convoy("train", *arguments)
    assert done.code == 2, done.err
    assert sentence in done.error
    assert hint in done.hint
    assert done.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_run_name_that_is_taken(convoy: Any) -> None:
    assert convoy("train", "lenet5", *SMALL, "--name", "one", "--quiet").code == 0
    before = sorted(Path("runs").rglob("*"))
    done = convoy("train", "lenet5", *SMALL, "--name", "one")
    assert done.code == 2 and "exists already" in done.error
    assert sorted(Path("runs").rglob("*")) == before


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "data_batch_1.bin"])
def test_damaged_data(convoy: Any, name: str) -> None:
    Path("data").mkdir()
    (Path("data") / name).write_bytes(b"\x00\x00\x08\x03 cut short")
    done = convoy("train", "lenet5", "--data", ("mnist" if "idx3" in name else "cifar10") + ":data")
    assert done.code == 2 and done.error and done.hint
    assert not Path("runs").exists()


def test_a_file_where_the_run_folder_should_be(convoy: Any) -> None:
    Path("runs").write_text("in the way")
    done = convoy("train", "lenet5", *SMALL)
    assert done.code == 2
    assert done.error.startswith("cannot write runs/")
    assert Path("runs").read_text() == "in the way"


def test_an_unwritable_run_folder(convoy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Path.mkdir

    def refuse(self: Path, *given: Any, **options: Any) -> None:  # as root, no real folder is unwritable
        if self.parent.name == "shut":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        make(self, *given, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)
    done = convoy("train", "lenet5", *SMALL, "--run-dir", "shut")
    assert done.code == 2
    assert done.error.startswith("cannot write shut/") and "permission is denied" in done.error
    assert not Path("shut").exists()


def test_a_full_disk(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the first checkpoint does not fit, and no half is left."""
    done = subprocess.run(
        [sys.executable, "-m", "convoy.cli.main", "train", "lenet5", *SMALL, "--name", "one"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1 and "error: cannot write runs/one/checkpoints" in done.stderr
    assert list((tmp_path / "runs/one/checkpoints").iterdir()) == []


def test_a_loss_that_is_not_finite(convoy: Any) -> None:
    done = convoy("train", "lenet5", *SMALL[:-1], "9", "--lr", "1e8", "--lr-schedule", "constant")
    assert done.code == 1
    assert "is nan" in done.error or "is inf" in done.error
    assert "learning rate" in done.hint


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_checkpoint(convoy: Any, trained: Path, damage: str) -> None:
    shutil.copytree(trained, "one")
    for checkpoint in Path("one/checkpoints").iterdir():
        file = checkpoint / "model.safetensors"
        content = file.read_bytes()
        file.unlink()
        if damage == "cut":
            file.write_bytes(content[:-50])
        elif damage == "changed":
            file.write_bytes(content[:-50] + bytes(50))
    for arguments in (("train", "--resume", "one"), ("evaluate", "one"), ("export", "one", "x.safetensors")):
        done = convoy(*arguments)
        assert done.code == 2 and "no checkpoint in one is whole" in done.error
    assert not Path("x.safetensors").exists()


def test_images_that_are_not_square(convoy: Any) -> None:
    for name in ("one", "two"):
        for number in range(3):
            path = Path("photos", name, f"{number}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 32)).save(path)
    done = convoy("train", "lenet5", "--data", "folder:photos")
    assert done.code == 2 and "32x40 pixels" in done.error and "--image-size 32" in done.hint
    assert not Path("runs").exists()
