"""Names, options and sizes: what is refused, and what the refusal says."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from convoy.errors import ModelError
from convoy.models import build, describe, names


@pytest.mark.parametrize(
    ("given", "meant"),
    [("resnet21", "resnet20"), ("lenet", "lenet5"), ("vgg-19", "vgg16"), ("densenet", "densenet121")],
)
def test_unknown_name_is_answered_with_near_ones(given: str, meant: str) -> None:
    with pytest.raises(ModelError, match=f"no network named '{given}'") as caught:
        build(given)
    assert caught.value.hint is not None and meant in caught.value.hint and "module:callable" in caught.value.hint


def test_a_name_near_to_none_is_answered_with_all() -> None:
    with pytest.raises(ModelError) as caught:
        describe("transformer")
    assert all(name in str(caught.value.hint) for name in names())


@pytest.mark.parametrize("spelling", ["ResNet-20", "resnet_20", "RESNET20", "resnet 20"])
def test_spelling_does_not_matter(spelling: str) -> None:
    assert describe(spelling) == describe("resnet20")


def test_every_network_has_one_line_of_its_own() -> None:
    lines = [describe(name) for name in names()]
    assert len(set(lines)) == len(lines)
    assert all(line and "\n" not in line and len(line) <= 110 for line in lines)


@pytest.mark.parametrize(
    ("name", "image_size", "message"),
    [
        ("lenet5", 8, "lenet5 takes images of 28x28 or 32x32 pixels, not 8x8"),
        ("alexnet", 64, "alexnet takes images of 32x32 pixels, not 64x64"),
        ("vgg16", 31, "vgg16 needs images of at least 32x32 pixels, not 31x31"),
        ("resnet56", 4, "resnet56 needs images of at least 8x8 pixels, not 4x4"),
        ("resnet50", 28, "resnet50 needs images of at least 32x32 pixels, not 28x28"),
        ("densenet121", 28, "densenet121 needs images of at least 32x32"),
        ("mobilenet-v2", 28, "mobilenet-v2 needs images of at least 32x32"),
        ("vgg16-imagenet", 28, "vgg16-imagenet needs images of at least 32x32"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_next_step(name: str, image_size: int, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        build(name, image_size=image_size)
    assert caught.value.message.startswith(message)
    assert caught.value.hint is not None and "resize" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "image_size"),
    [("vgg16", 32), ("resnet20", 8), ("resnet18", 32), ("densenet121", 32), ("mobilenet-v2", 32)],
)
def test_the_smallest_size_allowed_works(name: str, image_size: int) -> None:
    with torch.device("meta"):
        model = build(name, image_size=image_size)
    assert model(torch.empty(2, 3, image_size, image_size, device="meta")).shape == (2, 10)


@pytest.mark.parametrize("what", ["classes", "channels", "image_size"])
@pytest.mark.parametrize("value", [0, -1, 2.5, True])
def test_sizes_are_whole_numbers_from_one(what: str, value: object) -> None:
    with pytest.raises(ModelError, match=f"{what} of resnet20 is {value!r}"):
        build("resnet20", **{what: value})  # type: ignore[arg-type]


def test_unknown_options_are_answered_with_the_known() -> None:
    with pytest.raises(ModelError, match=r"no option 'drop'.*did you mean dropout"):
        build("vgg16", drop=0.1)
    with pytest.raises(ModelError, match=r"no option 'width'.*its options are shortcut"):
        build("resnet20", width=2)
    with pytest.raises(ModelError, match=r"no option 'depth'.*it has no options"):
        build("resnet18", depth=34)


@pytest.mark.parametrize("name", ["alexnet", "vgg16", "vgg16-imagenet", "mobilenet-v2"])
def test_dropout_is_an_option_and_is_checked(name: str) -> None:
    with torch.device("meta"):
        model = build(name, dropout=0.3)
    rates = {module.p for module in model.modules() if isinstance(module, nn.Dropout)}
    assert rates == {0.3}
    for wrong in (1.0, -0.1, "half"):
        with pytest.raises(ModelError, match=f"dropout of {name} is {wrong!r}"):
            build(name, dropout=wrong)


def test_unknown_shortcut_is_refused() -> None:
    with pytest.raises(ModelError, match="shortcut of resnet56 is 'C'"):
        build("resnet56", shortcut="C")


def test_names_need_no_torch() -> None:
    """The command line lists networks in its help, which must not wait for torch."""
    code = "import sys, convoy.models as m; m.names(); m.describe('lenet5'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
