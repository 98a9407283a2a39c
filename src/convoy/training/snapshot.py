"""A run into a checkpoint and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from convoy.errors import CheckpointError
from convoy.training.checkpoint import Checkpoint
from convoy.training.codec import dense_strides, row_by_row, with_strides
from convoy.training.setup import Setup, TrainingState, Watches


def snapshot(setup: Setup, state: TrainingState, watches: Watches, best_checkpoint: str | None) -> dict[str, Any]:
    """Everything beside the model's state_dict that a run needs to go on to the same bits."""
    return {
        "strategy": setup.strategy.name,
        "seed": setup.settings.seed,
        "training": state.to_dict(),
        "optimizer": {"kind": type(setup.optimizer).__name__, "state": setup.optimizer.state_dict()},
        "scheduler": None
        if setup.scheduler is None
        else {"kind": type(setup.scheduler).__name__, "state": setup.scheduler.state_dict()},
        "early_stopping": None if watches.stopping is None else watches.stopping.state(),
        "best": None if watches.best is None else {**watches.best.state(), "checkpoint": best_checkpoint},
    }


def restore(checkpoint: Checkpoint, setup: Setup, watches: Watches) -> TrainingState:
    """Put the checkpoint into the user's objects. Raises CheckpointError, before anything is changed, when it belongs
    to another model, strategy, optimizer or scheduler."""
    saved = checkpoint.state
    _check(checkpoint, setup)
    load_model(setup.model, checkpoint.model)
    try:
        setup.optimizer.load_state_dict(saved["optimizer"]["state"])
        if setup.scheduler is not None:
            setup.scheduler.load_state_dict(saved["scheduler"]["state"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {checkpoint.path} does not fit the optimizer or scheduler: {error}",
            hint="build them as in the run that wrote it",
        ) from error
    if watches.stopping is not None and saved["early_stopping"] is not None:
        watches.stopping.restore(saved["early_stopping"])
    state = TrainingState.from_dict(saved["training"])
    if watches.best is not None and saved["best"] is not None:
        watches.best.restore(saved["best"])
        state.best_checkpoint = saved["best"]["checkpoint"]
    return state


def _check(checkpoint: Checkpoint, setup: Setup) -> None:
    saved, path = checkpoint.state, checkpoint.path
    pairs = [
        ("strategy", saved["strategy"], setup.strategy.name),
        ("optimizer", saved["optimizer"]["kind"], type(setup.optimizer).__name__),
        (
            "scheduler",
            None if saved["scheduler"] is None else saved["scheduler"]["kind"],
            None if setup.scheduler is None else type(setup.scheduler).__name__,
        ),
        ("seed", saved["seed"], setup.settings.seed),
    ]
    for what, theirs, ours in pairs:
        if theirs != ours:
            raise CheckpointError(
                f"checkpoint {path} was written with {what} {theirs}, this run has {ours}",
                hint=f"use the same {what}, or load only the weights, from model.safetensors",
            )
    groups = saved["optimizer"]["state"]["param_groups"]
    sizes = [len(group["params"]) for group in groups]
    own = [len(group["params"]) for group in setup.optimizer.param_groups]
    if sizes != own:
        raise CheckpointError(
            f"checkpoint {path} has optimizer groups of {sizes} parameters, this run has {own}",
            hint="build model and optimizer as in the run that wrote it",
        )
    check_model(setup.model.state_dict(), checkpoint)


def check_model(own: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """Raise CheckpointError unless names and shapes agree with ``own``, a state_dict."""
    hint = "build the model as in the run that wrote it"
    missing = [name for name in own if name not in checkpoint.model]
    extra = [name for name in checkpoint.model if name not in own]
    for names, text in ((missing, "lacks"), (extra, "has, beyond the model,")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(f"checkpoint {checkpoint.path} {text} {names[0]}{more}", hint=hint)
    for name, value in own.items():
        theirs = checkpoint.model[name]
        if isinstance(value, torch.Tensor) and value.shape != theirs.shape:
            shapes = f"{tuple(theirs.shape)} in the checkpoint and {tuple(value.shape)} in the model"
            raise CheckpointError(f"{name} has the shape {shapes}", hint=hint)


def load_model(model: torch.nn.Module, values: Mapping[str, Any]) -> None:
    """Load a state_dict, memory formats included; parameters and buffers stay the same objects."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        value = values[name]
        if isinstance(tensor, torch.Tensor) and dense_strides(tensor) != dense_strides(value):
            order = list(dense_strides(value) or row_by_row(value.shape))
            tensor.data = with_strides(tensor.detach(), order)
    model.load_state_dict(dict(values))
