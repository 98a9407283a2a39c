"""Whether anything works at all, in a few seconds: imports are lazy, names are there, the command answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import convoy

pytestmark = pytest.mark.smoke


def python(code: str) -> str:
    """What ``code`` prints in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=os.environ)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_neither_torch_nor_numpy() -> None:
    loaded = python("import convoy, sys, json; print(json.dumps(sorted(sys.modules)))")
    assert not {"torch", "numpy", "pydantic", "cyclopts", "rich"} & set(json.loads(loaded))


def test_import_is_quick() -> None:
    code = "import time; t = time.process_time(); import convoy; print(time.process_time() - t)"
    assert min(float(python(code)) for _ in range(3)) < 0.2  # seconds; about 0.002 on an idle machine


def test_every_public_name_is_there() -> None:
    for name in convoy.__all__:
        assert getattr(convoy, name) is not None
    assert set(convoy.__all__) <= set(dir(convoy))


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'convoy' has no attribute 'Trainr'"):
        _ = convoy.Trainr


def test_public_names_are_the_same_for_type_checkers() -> None:
    """The table of lazy names and the TYPE_CHECKING block cannot drift apart."""
    import ast

    tree = ast.parse(Path(convoy.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == convoy._HOME
    assert {*seen, "__version__"} == set(convoy.__all__)


def test_version_is_that_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert convoy.__version__ == project["version"] == version("convoy-train")
