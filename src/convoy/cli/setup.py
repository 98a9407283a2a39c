"""From a ``TrainConfig`` to the objects that it describes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from convoy.cli.config import TrainConfig, about, applies, strategy_fields
from convoy.data import DataBundle, open_data
from convoy.errors import DataError, MachineError, OptionError
from convoy.models import load
from convoy.strategies.base import Settings, Strategy
from convoy.strategies.registry import make_strategy, strategy_class

Scheduler = torch.optim.lr_scheduler.LRScheduler


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a trainer needs. ``scheduler_interval``: whether the schedule steps per "batch" or per "epoch"."""

    data: DataBundle
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler | None
    scheduler_interval: str
    strategy: Strategy
    settings: Settings


def assemble(config: TrainConfig) -> Parts:
    """All objects of a run, cheap checks first. Raises InputError and MachineError."""
    strategy = make(config)
    check_device(config.device)
    data = open_data(
        config.data,
        batch_size=config.batch_size,
        seed=config.seed,
        image_size=config.image_size,
        augment=config.augment,
        limit=config.limit,
    )
    channels, height, width = data.sample_shape
    if height != width and ":" not in config.model:
        raise DataError(
            f"the images of {config.data} have {height}x{width} pixels, and {config.model} takes square ones",
            hint=f"--image-size {min(height, width)} resizes and crops them",
        )
    model = load(config.model, classes=len(data.classes), channels=channels, image_size=height, seed=config.seed)
    if config.weights is not None:
        from convoy.cli.saved import load_weights

        load_weights(model, config.weights)
    optimizer = make_optimizer(config, model)
    scheduler, interval = make_scheduler(config, optimizer, len(data.train))
    settings = Settings(
        seed=config.seed,
        precision=config.precision,
        device=config.device,
        threads=config.threads,
        clip=config.clip,
        max_memory=config.max_memory,
        trace=config.trace,
        forecast=True,
    )
    return Parts(
        data=data,
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        scheduler_interval=interval,
        strategy=strategy,
        settings=settings,
    )


def make(config: TrainConfig) -> Strategy:
    """The strategy with its fields. Raises OptionError for a field of another strategy."""
    strategy_class(config.strategy)
    for key in TrainConfig.model_fields:
        if getattr(config, key) is not None and not applies(key, config.strategy):
            belongs: list[str] = about(key)["of"]
            raise OptionError(
                f"--{key.replace('_', '-')} does not apply to strategy {config.strategy}",
                hint=f"drop it, or choose --strategy {' or '.join(belongs)}",
            )
    return make_strategy(config.strategy, **strategy_fields(config))


def check_device(name: str) -> None:
    """Raise OptionError for what is no device, MachineError for one that is not there."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise OptionError(f"--device is {name!r}, which is no device", hint="use cpu, cuda, or cuda:1 and so on")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            there = f"there are {count} CUDA devices" if count else "no CUDA device is found here"
            raise MachineError(f"--device is {name!r}, but {there}", hint="convoy doctor says what this machine has")


def make_optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise OptionError(f"model {config.model} has no weights to train", hint="check what it freezes")
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        parameters,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.nesterov,
    )


def make_scheduler(config: TrainConfig, optimizer: torch.optim.Optimizer, batches: int) -> tuple[Scheduler | None, str]:
    """The course of the learning rate over ``config.epochs`` epochs of ``batches``, and when it steps."""
    total = config.epochs * batches
    schedules = torch.optim.lr_scheduler
    if config.lr_schedule == "cosine":
        return schedules.CosineAnnealingLR(optimizer, T_max=total), "batch"
    if config.lr_schedule == "one-cycle":
        # Momentum stays as it was asked for.
        return schedules.OneCycleLR(optimizer, max_lr=config.lr, total_steps=total, cycle_momentum=False), "batch"
    if config.lr_schedule == "step":
        milestones = [math.ceil(config.epochs / 2), math.ceil(config.epochs * 3 / 4)]
        return schedules.MultiStepLR(optimizer, milestones), "epoch"
    return None, "epoch"


def resolved(config: TrainConfig) -> Mapping[str, Any]:
    """What ``config.toml`` holds: all keys that have a value and apply to the strategy."""
    values = config.model_dump(exclude_none=True)
    return {key: value for key, value in values.items() if applies(key, config.strategy)}
