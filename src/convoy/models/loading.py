"""Networks of the user's own, named as ``module:callable``."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from convoy.errors import ModelError
from convoy.models.registry import build, seeded

if TYPE_CHECKING:
    from torch import nn


def load(
    spec: str, *, classes: int = 10, channels: int = 3, image_size: int = 32, seed: int | None = None, **options: Any
) -> nn.Module:
    """A network by name (see ``build``) or by ``module:callable``, such as ``my_package.nets:build``.

    The callable (a function, or a class derived from ``nn.Module``; ``module:Outer.inner`` is allowed) is given those
    of ``classes``, ``channels`` and ``image_size`` that it accepts as keywords, and all ``options``. The current
    directory is put on ``sys.path``, as ``python -m`` does. Raises ModelError when the module or the attribute is
    missing, an option is not accepted, the callable fails, or what it returns is no ``nn.Module``.
    """
    if ":" not in spec:
        return build(spec, classes=classes, channels=channels, image_size=image_size, seed=seed, **options)
    function = _resolve(spec)
    arguments = _accepted(spec, function, {"classes": classes, "channels": channels, "image_size": image_size}, options)
    with seeded(seed):
        try:
            model = function(**arguments)
        except Exception as error:
            given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
            raise ModelError(
                f"{spec} failed when called with ({given}): {_in_short(error)}",
                hint="call it the same way in Python to see the whole traceback",
            ) from error
    from torch import nn

    if not isinstance(model, nn.Module):
        raise ModelError(
            f"{spec} returned an object of type {type(model).__name__}, not a torch.nn.Module",
            hint="name a function that returns the network, or the network's class",
        )
    return model


def _resolve(spec: str) -> Callable[..., object]:
    module_name, _, path = spec.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), *path.split("."))):
        dotted = module_name.removesuffix(".py").strip("./").replace("/", ".")
        name = path if path.isidentifier() else "build"
        raise ModelError(
            f"{spec!r} is not of the form module:callable",
            hint=f"write the module with dots, as in {dotted or 'my_package.nets'}:{name}",
        )
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ModelError(
                f"module {module_name} cannot be imported because it needs {error.name}, which is not installed",
                hint=f"install {error.name} into this environment",
            ) from error
        raise ModelError(
            f"there is no module named {error.name} for the model {spec}",
            hint=f"modules are looked for in the current directory ({here}) and in the installed packages",
        ) from None
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"module {module_name} failed while it was imported: {_in_short(error)}",
            hint=f"run python -c 'import {module_name}' to see the whole traceback",
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            members = getattr(found, "__dict__", {}).items()
            offered = [n for n, v in members if callable(v) and getattr(v, "__module__", "") == module_name]
            hint = f"it defines {', '.join(offered)}" if offered else "check the spelling"
            raise ModelError(f"module {module_name} has no {path}", hint=hint)
        found = getattr(found, part)
    if not callable(found):
        raise ModelError(
            f"{spec} is of type {type(found).__name__} and cannot be called",
            hint="name a function that builds the network",
        )
    function: Callable[..., object] = found
    return function


def _accepted(
    spec: str, function: Callable[..., object], sizes: Mapping[str, int], options: Mapping[str, Any]
) -> dict[str, Any]:
    """``options``, and those of ``sizes`` that ``function`` takes as keywords."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some callables written in C have none
        return dict(options)
    keywords = {p.name for p in signature.parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    arguments = {key: value for key, value in sizes.items() if takes_any or key in keywords} | dict(options)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise ModelError(
            f"{spec}{signature} cannot be called with ({', '.join(arguments)}): {error}",
            hint="only classes, channels and image_size are passed by themselves; give the others default values",
        ) from None
    return arguments


def _in_short(error: BaseException) -> str:
    """Type and first line of an error, for a message of one sentence."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
