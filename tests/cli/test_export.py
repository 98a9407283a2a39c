"""``convoy export``: weights that load into the plain model, and a file that stands alone."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from convoy.models import build


def test_weights_load_into_the_plain_model(convoy: Any, trained: Path) -> None:
    done = convoy("export", trained, "out.safetensors", "--json")
    assert done.json["bytes"] == Path("out.safetensors").stat().st_size
    model = build("lenet5", classes=10, channels=1, image_size=28)
    model.load_state_dict(load_file("out.safetensors"))
    latest = load_file(max((trained / "checkpoints").iterdir()) / "model.safetensors")
    assert all(torch.equal(value, latest[name]) for name, value in model.state_dict().items())


def test_an_exported_file_needs_no_run(convoy: Any, trained: Path) -> None:
    assert convoy("export", trained, "out.bin", "--to", "safetensors").code == 0
    from_file, from_run = (convoy("evaluate", path, "--json").json for path in ("out.bin", trained))
    assert from_file["accuracy"] == from_run["accuracy"] and from_file["loss"] == from_run["loss"]


def test_nothing_is_written_over_unasked(convoy: Any, trained: Path) -> None:
    Path("out.safetensors").write_text("mine")
    done = convoy("export", trained, "out.safetensors")
    assert done.code == 2 and "exists already" in done.error and "--force" in done.hint
    assert Path("out.safetensors").read_text() == "mine"
    assert convoy("export", trained, "out.safetensors", "--force").code == 0
    assert len(load_file("out.safetensors")) == 10


@pytest.mark.parametrize(
    ("out", "arguments", "sentence"),
    [
        ("weights", (), "does not say which format"),
        ("x.onnx", ("--to", "pickle"), "--to is 'pickle'"),
        ("none/x.safetensors", (), "no folder none"),
        (".", ("--to", "safetensors"), "."),
    ],
)
def test_wrong_values(convoy: Any, trained: Path, out: str, arguments: tuple[str, ...], sentence: str) -> None:
    done = convoy("export", trained, out, *arguments)
    assert done.code == 2 and sentence in done.error
    assert list(Path().iterdir()) == []


def test_onnx_without_the_exporter(convoy: Any, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "onnxscript" else find(name))
    done = convoy("export", trained, "out.onnx")
    assert done.code == 2 and "needs onnxscript" in done.error and "pip install onnxscript" in done.hint
    assert not Path("out.onnx").exists()


@pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="onnxscript is not installed")
def test_onnx_computes_the_same(convoy: Any, trained: Path) -> None:
    import onnx
    from onnx.reference import ReferenceEvaluator

    from convoy.cli.saved import open_saved, put

    done = convoy("export", trained, "out.onnx")
    assert done.code == 0, done.err
    model = onnx.load("out.onnx")
    onnx.checker.check_model(model)
    saved = open_saved(str(trained))
    assert saved.facts is not None
    network = put(saved.facts.build(), saved.weights).eval()
    for batch in (1, 3):
        images = torch.randn(batch, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        (scores,) = ReferenceEvaluator(model).run(None, {"images": images.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(scores), network(images), rtol=1e-4, atol=1e-5)
