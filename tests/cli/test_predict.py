"""``convoy predict`` gives the classes that the network itself gives, prepared as in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from convoy.cli.saved import open_saved, put
from convoy.data import open_data


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """The first validation images as files of the size that the network takes, so that no resizing differs."""
    source = open_data("digits", batch_size=1).validation.source
    paths = []
    for number, pixels in enumerate(source.take(np.arange(4))):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels[0]).save(paths[-1])
    return paths


def test_predictions_are_the_networks_own(convoy: Any, trained: Path, images: list[Path]) -> None:
    found = convoy("predict", trained, *images, "--json", "--top", "10").json["predictions"]
    saved = open_saved(str(trained))
    assert saved.facts is not None
    network = put(saved.facts.build(), saved.weights).eval()
    x, _ = next(iter(open_data("digits", batch_size=4).validation))
    with torch.no_grad():
        expected = torch.softmax(network(x), 1)
    for image, row, one in zip(images, expected, found, strict=True):
        assert one["image"] == str(image)
        for guess in one["classes"]:
            assert guess["probability"] == pytest.approx(float(row[guess["index"]]), abs=1e-5)
            assert guess["class"] == str(guess["index"])
        probabilities = [guess["probability"] for guess in one["classes"]]
        assert probabilities == sorted(probabilities, reverse=True) and len(probabilities) == 10
        assert one["classes"][0]["index"] == int(row.argmax())


def test_text_names_every_image(convoy: Any, trained: Path, images: list[Path]) -> None:
    lines = convoy("predict", trained, *images, "--top", "2").out.splitlines()
    assert len(lines) == 4
    assert all(line.startswith(str(image)) and line.count("%") == 2 for line, image in zip(lines, images, strict=True))


def test_other_sizes_and_colours_are_brought_into_shape(convoy: Any, trained: Path) -> None:
    Image.new("RGB", (90, 41), "red").save("wide.jpg")
    (one,) = convoy("predict", trained, "wide.jpg", "--json").json["predictions"]
    assert sum(guess["probability"] for guess in one["classes"]) <= 1


def test_wrong_images(convoy: Any, trained: Path, images: list[Path]) -> None:
    assert "no image was named" in convoy("predict", trained).error
    assert "cannot read 'none.png'" in convoy("predict", trained, images[0], "none.png").error
    Path("broken.png").write_bytes(images[0].read_bytes()[:60])
    done = convoy("predict", trained, images[0], "broken.png")
    assert done.code == 2 and done.out == "" and "broken.png" in done.error
    assert convoy("predict", trained, images[0], "--top", "0").code == 2
