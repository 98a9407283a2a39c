"""The fallback for models whose own forward cannot be recorded: ``torch.export`` writes it as ATen calls first.

The exported module shares parameters and buffers with the user's model, and is then recorded like any other.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from convoy.graph.structure import flatten, is_tensor


def exported(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], batch_size: int) -> nn.Module | None:
    """``model`` in train mode as a graph of ATen calls for any batch size; None where ``torch.export`` cannot, or
    where the result would not be the same model (copied weights, calls inside calls).

    Not for models that apply a ``torch.autograd.Function``: export would differentiate through its forward.
    """
    try:
        with _train_mode(model), torch.enable_grad(), warnings.catch_warnings(), _quiet():
            warnings.simplefilter("ignore")
            program = torch.export.export(model, args, dict(kwargs), dynamic_shapes=_dynamic(args, kwargs, batch_size))
            module = program.module()
    except Exception:
        # Export fails in its own many ways, all of which mean the same here: the first refusal stands.
        return None
    if not isinstance(module, fx.GraphModule) or not _shares(model, module):
        return None
    for node in list(module.graph.nodes):
        if node.op == "call_module":  # checks of the example's sizes; anything else is no plain graph
            if node.users:
                return None
            module.graph.erase_node(node)
    module.recompile()
    return module


def _dynamic(args: tuple[Any, ...], kwargs: Mapping[str, Any], batch_size: int) -> Any:
    """What ``torch.export`` takes as dynamic shapes: the first dimension of every batched tensor."""

    def shape(value: Any) -> Any:
        batched = isinstance(value, Tensor) and value.dim() and value.shape[0] == batch_size
        return {0: torch.export.Dim.AUTO} if batched else None

    leaves, structure = flatten(((args), dict(kwargs)), is_tensor)
    by_position, by_name = structure.rebuild(shape(leaf) for leaf in leaves)
    if not kwargs:
        return by_position
    return None if args else by_name


def _shares(model: nn.Module, module: nn.Module) -> bool:
    mine = {id(t) for t in (*model.parameters(), *model.buffers())}
    return all(id(t) in mine for t in (*module.parameters(), *module.buffers())) and all(
        id(p) in {id(q) for q in module.parameters()} for p in model.parameters() if p.requires_grad
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """An attempt that fails is no news for the user: export would log it at length."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _train_mode(model: nn.Module) -> Iterator[None]:
    flags = {module: module.training for module in model.modules()}
    model.train()
    try:
        yield
    finally:
        for module, training in flags.items():
            module.training = training
