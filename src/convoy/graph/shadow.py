"""A copy of the user's model without numbers: same classes, same structure, tensors on the meta device.

Capture runs the copy, so the user's module is never run and never changed: no flag, no buffer, no generator.
"""

from __future__ import annotations

import copy
import types
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from convoy.errors import ModelError

Call = Callable[[nn.Module, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""``call(module, original, args, kwargs)``: told of every call of a module; ``original(module, *args, **kwargs)``."""


def meta_like(tensor: Tensor) -> Tensor:
    """A tensor of the same shape, strides and type without storage."""
    return torch.empty_like(tensor, device="meta")


def shadow_of(model: nn.Module) -> tuple[nn.Module, list[tuple[str, Tensor]]]:
    """The copy, and its parameters, buffers and plain tensor attributes with their paths. The model's own tensors
    stand there too: code that reaches around the copy (a closure) then still finds them.

    Raises ``ModelError`` for lazy modules that have not seen a batch, and where a part cannot be copied.
    """
    memo: dict[int, Any] = {}
    named: list[tuple[str, Tensor]] = []
    for prefix, module in model.named_modules():
        tensors: list[tuple[str, Any]] = [
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
            *((key, value) for key, value in vars(module).items() if isinstance(value, Tensor)),
        ]
        for name, tensor in tensors:
            path = f"{prefix}.{name}" if prefix else name
            if is_lazy(tensor):
                raise ModelError(
                    f"{path} has no shape yet: {type(module).__name__} is lazy",
                    hint="run the model once on a batch before handing it over",
                )
            if id(tensor) not in memo:
                empty = meta_like(tensor.detach())
                memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if _is_parameter(tensor) else empty
                named += [(path, memo[id(tensor)]), (path, tensor)]
    return _copy(model, memo), named


def _is_parameter(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter)


def _copy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what parts of torch say about being copied is no concern of the user
        return _deep_copy(model, memo)


def _deep_copy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    try:
        return copy.deepcopy(model, dict(memo))
    except Exception:
        # Something that a module carries about (a lock, an open file) cannot be copied: share it.
        for module in model.modules():
            for value in vars(module).values():
                if isinstance(value, nn.Module | Tensor) or id(value) in memo:
                    continue
                try:
                    copy.deepcopy(value, dict(memo))
                except Exception:
                    memo[id(value)] = value
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be copied: {type(error).__name__}: {error}",
            hint="keep what cannot be copied (locks, files, connections) out of the module",
        ) from error


def announce_calls(shadow: nn.Module, call: Call) -> None:
    """From now on every call of a module of ``shadow`` goes through ``call``."""
    classes: dict[type, type] = {}
    for module in shadow.modules():
        kind = type(module)
        if isinstance(module, torch.jit.ScriptModule):
            continue
        if kind not in classes:
            classes[kind] = _announcing(kind, call)
        module.__class__ = classes[kind]


def _announcing(kind: type[nn.Module], call: Call) -> type[nn.Module]:
    original = kind.__call__

    def announced(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return call(self, original, args, kwargs)

    def fill(namespace: dict[str, Any]) -> None:
        namespace.update(
            __call__=announced, __module__=kind.__module__, __qualname__=kind.__qualname__, __doc__=kind.__doc__
        )

    return types.new_class(kind.__name__, (kind,), exec_body=fill)
