"""``convoy evaluate`` says what training said, and refuses data that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file


def test_a_run_is_as_good_as_training_said(convoy: Any, trained: Path) -> None:
    epochs = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines() if "train_loss" in line]
    found = convoy("evaluate", trained, "--limit", "96", "--json").json
    assert found["samples"] == 96
    assert found["loss"] == pytest.approx(epochs[-1]["validation_loss"], rel=1e-5)
    assert found["accuracy"] == epochs[-1]["validation_accuracy"]


def test_text_and_parts(convoy: Any, trained: Path) -> None:
    shown = convoy("evaluate", trained)
    assert shown.code == 0 and "of 360 samples" in shown.out
    assert convoy("evaluate", trained, "--part", "train", "--json").json["samples"] == 1437


def test_batch_size_does_not_matter(convoy: Any, trained: Path) -> None:
    one, other = (convoy("evaluate", trained, "--batch-size", size, "--json").json for size in (7, 360))
    assert one["accuracy"] == other["accuracy"]
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)


def test_plain_weights_need_a_name_and_data(convoy: Any, trained: Path) -> None:
    """Weights from elsewhere, without what convoy writes beside them."""
    save_file(load_file(max((trained / "checkpoints").iterdir()) / "model.safetensors"), "plain.safetensors")
    done = convoy("evaluate", "plain.safetensors")
    assert done.code == 2 and "--data" in done.hint
    done = convoy("evaluate", "plain.safetensors", "--data", "digits")
    assert done.code == 2 and "--model" in done.hint
    found = convoy("evaluate", "plain.safetensors", "--data", "digits", "--model", "lenet5", "--json").json
    assert found["accuracy"] == convoy("evaluate", trained, "--json").json["accuracy"]
    done = convoy("evaluate", "plain.safetensors", "--data", "digits", "--image-size", "32", "--model", "resnet20")
    assert done.code == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--part", "test"), "--part is 'test'"),
        (("--which", "last"), "--which is 'last'"),
        (("--batch-size", "0"), "--batch-size is 0"),
        (("--limit", "0"), "--limit is 0"),
        (("--precision", "half"), "--precision is 'half'"),
        (("--device", "cuda:77"), "--device is 'cuda:77'"),
        (("--data", "cifar10:none"), "'none' does not exist"),
    ],
)
def test_wrong_values(convoy: Any, trained: Path, arguments: tuple[str, ...], sentence: str) -> None:
    done = convoy("evaluate", trained, *arguments)
    assert done.code == 2 and sentence in done.error


def test_data_of_another_shape(convoy: Any, trained: Path) -> None:
    from PIL import Image

    for name in ("cat", "dog"):
        Path("pets", name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (30, 30), (40 * number, 9, 9)).save(Path("pets", name, f"{number}.png"))
    done = convoy("evaluate", trained, "--data", "folder:pets")
    assert done.code == 2
    assert "2 classes of 3x28x28" in done.error and "10 of 1x28x28" in done.error
