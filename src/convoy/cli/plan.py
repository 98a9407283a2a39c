"""``convoy plan``: what training would take under one strategy, or under each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convoy.cli.config import TrainConfig, merge, read_file
from convoy.cli.output import note, result
from convoy.errors import OptionError

_KNOWN = {"digits": (1, 28, 10), "mnist": (1, 28, 10), "cifar10": (3, 32, 10), "cifar100": (3, 32, 100)}
"""Channels, pixels a side and classes: to plan, the images themselves are not needed."""
_LARGE = ("resnet18", "resnet34", "resnet50", "resnet101", "vgg16-imagenet", "densenet121", "mobilenet-v2")


def plan(
    given: Mapping[str, Any],
    *,
    config: Path | None = None,
    workers: int | None = None,
    grid: bool = False,
    csv: bool = False,
    json: bool = False,
    quiet: bool = False,
    debug: bool = False,
) -> int:
    """Plan a run as ``given`` (option → value) says; returns the exit code."""
    if workers is not None and workers < 1:
        raise OptionError(f"--workers is {workers}", hint="give the number of cores to plan for")
    if csv and json:
        raise OptionError("--csv and --json are both given", hint="choose one of them")
    file = {} if config is None else read_file(config)
    asked = merge(given, config)
    named = "strategy" in given or "strategy" in file
    if grid and asked.strategy != "pipelined":
        raise OptionError("--grid draws the schedule of a pipeline", hint="add --strategy pipelined")
    from torch import nn

    from convoy.cli.setup import check_device, make, make_optimizer
    from convoy.models import load
    from convoy.planning.comparison import to_csv
    from convoy.planning.plans import plan as make_plan
    from convoy.strategies.base import Settings
    from convoy.training.load import BUSY_CORES, OtherLoad

    # Of the options of single strategies only the bound on memory makes sense for all.
    strategy = make(asked if named else asked.model_copy(update={"max_memory": None}))
    check_device(asked.device)
    channels, size, classes = _shape(asked, "data" in given or "data" in file)
    model = load(asked.model, classes=classes, channels=channels, image_size=size, seed=asked.seed)
    settings = Settings(
        seed=asked.seed, precision=asked.precision, device=asked.device, threads=asked.threads,
        max_memory=asked.max_memory,
    )  # fmt: skip
    note(f"measuring {asked.model} on {asked.batch_size} images of {size} pixels, 10 to 30 seconds", quiet=quiet)
    meter = OtherLoad()
    made: Any = make_plan(
        model, _images(asked, channels, size, classes), strategy if named else None, workers,
        loss=nn.CrossEntropyLoss(), optimizer=make_optimizer(asked, model), settings=settings,
    )  # fmt: skip
    others = meter.cores()
    if others is not None and others > BUSY_CORES:
        note(
            f"other programs kept {others:.1f} cores busy meanwhile: the times are those of a busy machine, and with "
            "them the advice; repeat it on a quiet one",
            quiet=quiet,
        )
    text = to_csv(made.csv_rows()) if csv else made.table()
    if grid:
        text += f"\n\n{made.grid()}"
    values = made.to_dict() | ({"grid": made.grid()} if grid else {}) | {"other_cores": others}
    result(values, text, as_json=json)
    return 0


def _shape(asked: TrainConfig, named: bool) -> tuple[int, int, int]:
    """Channels, pixels a side and classes of the data that the network would see."""
    plain = asked.model.lower()
    if not named:
        channels, size, classes = (
            (3, 224, 1000) if plain in _LARGE else _KNOWN["mnist" if plain == "lenet5" else "cifar10"]
        )
        return channels, asked.image_size or size, classes
    kind = asked.data.partition(":")[0]
    if kind in _KNOWN:
        channels, size, classes = _KNOWN[kind]
        return channels, asked.image_size or size, classes
    from convoy.data import open_data

    data = open_data(asked.data, batch_size=asked.batch_size, image_size=asked.image_size, limit=asked.limit)
    return data.sample_shape[0], data.sample_shape[1], len(data.classes)


def _images(asked: TrainConfig, channels: int, size: int, classes: int) -> Any:
    """A mini-batch of noise."""
    import torch

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(asked.batch_size, channels, size, size, generator=generator)
    return x, torch.randint(0, classes, (asked.batch_size,), generator=generator)
