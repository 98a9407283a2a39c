"""Networks of the user's own: what is passed, and what each mistake is answered with."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from convoy.errors import ModelError
from convoy.models import load

SOURCE = """
import torch
from torch import nn

CALLS = []
NUMBER = 3

class Net(nn.Module):
    def __init__(self, classes, channels=3):
        super().__init__()
        self.sizes = (classes, channels)
        self.fc = nn.Linear(channels, classes)

class Holder:
    @staticmethod
    def make(image_size):
        return nn.Linear(image_size, 1)

def everything(**sizes):
    CALLS.append(sizes)
    return nn.Identity()

def nothing():
    return nn.Identity()

def options(classes, *, width=1, depth):
    return nn.Linear(width * depth, classes)

def fails(classes):
    raise ValueError("classes must be odd\\nsecond line")

def returns_a_function():
    return torch.relu
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current directory with the package ``my_package`` whose module ``nets`` is SOURCE."""
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "nets.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] in {"my_package", "broken", "needy", "quits"}]:
        del sys.modules[name]


def test_plain_names_are_built() -> None:
    model = load("lenet5", classes=4, channels=1, image_size=28)
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 4)


def test_only_what_is_accepted_is_passed() -> None:
    assert load("my_package.nets:Net", classes=5, channels=2).sizes == (5, 2)
    assert isinstance(load("my_package.nets:nothing"), nn.Identity)
    load("my_package.nets:everything", classes=5, channels=2, image_size=9)
    assert sys.modules["my_package.nets"].CALLS == [{"classes": 5, "channels": 2, "image_size": 9}]
    assert load("my_package.nets:Holder.make", image_size=9).in_features == 9


def test_options_are_passed_on() -> None:
    assert load("my_package.nets:options", classes=2, width=3, depth=4).in_features == 12


def test_the_seed_decides_the_weights() -> None:
    before = torch.get_rng_state()
    first, again, other = (load("my_package.nets:Net", seed=seed).fc.weight for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_the_current_directory_is_put_on_the_path_once(project: Path) -> None:
    load("my_package.nets:nothing")
    load("my_package.nets:nothing")
    assert sys.path[0] == str(project) and sys.path.count(str(project)) == 1


@pytest.mark.parametrize(
    ("spec", "message", "hint"),
    [
        ("my_package/nets.py:nothing", "not of the form module:callable", "my_package.nets:nothing"),
        ("./my_package/nets.py:", "not of the form module:callable", "my_package.nets:build"),
        (":build", "not of the form module:callable", "my_package.nets:build"),
        ("a:b:c", "not of the form module:callable", "a:build"),
        ("my_package.net:nothing", "no module named my_package.net ", "current directory"),
        ("no_such_package.nets:build", "no module named no_such_package ", "current directory"),
        ("my_package.nets:nothingg", "module my_package.nets has no nothingg", "nothing"),
        ("my_package.nets:Holder.make_it", "module my_package.nets has no Holder.make_it", "make"),
        ("my_package.nets:NUMBER", "of type int and cannot be called", "function"),
        (
            "my_package.nets:fails",
            r"failed when called with \(classes=10\): ValueError: classes must be odd$",
            "traceback",
        ),
        ("my_package.nets:returns_a_function", "not a torch.nn.Module", "returns the network"),
        ("my_package.nets:options", r"options\(classes, .* missing a required argument: 'depth'", "default values"),
    ],
)
def test_mistakes_are_answered_in_one_sentence(spec: str, message: str, hint: str) -> None:
    with pytest.raises(ModelError) as caught:
        load(spec)
    assert re.search(message, caught.value.message), caught.value.message
    assert caught.value.hint is not None and hint in caught.value.hint
    assert "\n" not in caught.value.message


def test_an_option_that_is_not_accepted_is_refused() -> None:
    with pytest.raises(ModelError, match="unexpected keyword argument 'width'"):
        load("my_package.nets:Net", width=3)


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("broken", "1 / 0", "module broken failed while it was imported: ZeroDivisionError: division by zero"),
        ("broken", "def f(:", "module broken failed while it was imported: SyntaxError"),
        ("needy", "import not_installed_anywhere", "module needy cannot be imported because it needs not_installed"),
        ("quits", "raise SystemExit(3)", "module quits failed while it was imported: SystemExit: 3"),
    ],
)
def test_modules_that_cannot_be_imported(project: Path, name: str, source: str, message: str) -> None:
    (project / f"{name}.py").write_text(source)
    with pytest.raises(ModelError) as caught:
        load(f"{name}:build")
    assert caught.value.message.startswith(message)
    assert caught.value.__cause__ is not None


def test_ctrl_c_while_building_is_not_swallowed(project: Path) -> None:
    (project / "my_package" / "slow.py").write_text("def build():\n    raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load("my_package.slow:build")
