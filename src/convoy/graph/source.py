"""Where in the user's code we are: for the lines that messages name."""

from __future__ import annotations

import linecache
import os
from collections.abc import Iterator
from inspect import currentframe
from types import FrameType

import torch

_TORCH = os.path.dirname(torch.__file__) + os.sep
_HERE = os.path.dirname(__file__) + os.sep


def _frames() -> Iterator[FrameType]:
    """The frames of the model being recorded, innermost first; nothing beyond the recorder's own call of it."""
    frame = currentframe()
    while frame is not None:
        if frame.f_code.co_name == "trace" and frame.f_code.co_filename.startswith(_HERE):
            return
        yield frame
        frame = frame.f_back


def _is_users(file: str) -> bool:
    return not file.startswith((_TORCH, _HERE, "<"))


def user_line() -> str:
    """The "file:line" of the innermost frame outside of torch and of capture, "" where there is none."""
    return next((f"{f.f_code.co_filename}:{f.f_lineno}" for f in _frames() if _is_users(f.f_code.co_filename)), "")


def line_of(error: BaseException) -> str:
    """The "file:line" of the innermost user frame in the traceback of ``error``, "" where there is none."""
    found, step = "", error.__traceback__
    while step is not None:
        if _is_users(step.tb_frame.f_code.co_filename):
            found = f"{step.tb_frame.f_code.co_filename}:{step.tb_lineno}"
        step = step.tb_next
    return found


def quoted(line: str) -> str:
    """The source at "file:line", stripped; "" where it cannot be read."""
    file, _, number = line.rpartition(":")
    return linecache.getline(file, int(number)).strip() if number.isdigit() else ""


def inside_autograd_function() -> bool:
    """Whether the forward of a ``torch.autograd.Function`` is running: its own backward could not be recorded."""
    where = os.path.join("autograd", "function.py")
    return any(f.f_code.co_name == "apply" and f.f_code.co_filename.endswith(where) for f in _frames())
