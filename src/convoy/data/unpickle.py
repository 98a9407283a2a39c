"""Read the pickled CIFAR batches without running anything that a pickle may ask for.

A pickle is a program: it may call whatever it can import. The CIFAR files, written by Python 2, need three names, all
for one array of bytes, and nothing of NumPy itself is handed out even for these: stand-ins only note what they are
given. Every other name is refused before anything is called.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from convoy.data.places import unreadable
from convoy.errors import DataError

_AGAIN = "the file is damaged or no CIFAR batch; unpack the archive again"
_MODULES = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")


class _Refused(Exception):
    """The pickle names something that a batch of images does not need."""


def read_pickle(path: Path) -> dict[str, Any]:
    """The dictionary in the file: keys as str, Python 2 strings as bytes, arrays as uint8.

    Raises DataError for a file that is no pickle, is cut short, or asks for more than a batch of images needs.
    """
    try:
        with path.open("rb") as stream:
            value = _Reader(_Whole(stream), fix_imports=False, encoding="bytes").load()
    except _Refused as error:
        raise DataError(
            f"'{path}' was refused: it wants to use {error}, which a CIFAR file does not need",
            hint="do not use this file; it may run code in programs that read it with pickle",
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error
    except Exception as error:  # whatever a damaged pickle provokes: the unpickler raises nearly every kind
        reason = str(error) or type(error).__name__
        raise DataError(f"'{path}' is not a complete CIFAR batch: {reason}", hint=_AGAIN) from error
    if not isinstance(value, dict):
        raise DataError(
            f"'{path}' holds a {type(value).__name__}, not the dictionary of a CIFAR batch",
            hint=_AGAIN,
        )
    return {k.decode("latin1") if isinstance(k, bytes) else str(k): _plain(v, path) for k, v in value.items()}


def _plain(value: Any, path: Path) -> Any:
    if not isinstance(value, _Array):
        if isinstance(value, str | bytes | int | float | list | dict | None):
            return value
        raise DataError(f"'{path}' holds more than strings, numbers and an array", hint=_AGAIN)
    try:
        return value.as_array()
    except ValueError as error:
        raise DataError(f"'{path}' holds a damaged array: {error}", hint=_AGAIN) from error


class _Type:
    """In place of numpy.dtype: only its name matters, and only that of a byte is taken."""

    __slots__ = ("name",)

    def __init__(self, name: Any = b"", *_: Any) -> None:
        self.name = name.decode("latin1") if isinstance(name, bytes) else name

    def __setstate__(self, state: Any) -> None:
        pass


class _Array:
    """In place of numpy.ndarray and of what makes one: shape and bytes as they were saved, checked when asked for."""

    __slots__ = ("state",)

    def __init__(self, *_: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def as_array(self) -> NDArray[np.uint8]:
        if not (isinstance(self.state, tuple) and len(self.state) == 5):
            raise ValueError("its description is incomplete")
        _, shape, kind, by_columns, values = self.state
        if not (isinstance(kind, _Type) and kind.name in ("u1", "|u1", "uint8")):
            raise ValueError("its values are not bytes")
        if not isinstance(values, bytes) or not isinstance(shape, tuple):
            raise ValueError("its values are missing")
        if not all(isinstance(n, int) and n >= 0 for n in shape):
            raise ValueError(f"its shape is {shape}")
        return np.frombuffer(values, np.uint8).reshape(shape, order="F" if by_columns else "C")


# Both are classes with __setstate__, which a pickle cannot alter: its BUILD would only call that method.
_ALLOWED = {"_reconstruct": _Array, "ndarray": _Array, "dtype": _Type}


class _Reader(pickle._Unpickler):
    """The unpickler in Python, not the one in C: that one lets a damaged file ask for gigabytes of empty memo.

    It is as fast here, because nearly all of a batch is one string.
    """

    def find_class(self, module: str, name: str) -> Any:
        if module in _MODULES and name in _ALLOWED:
            return _ALLOWED[name]
        raise _Refused(f"{module}.{name}")


class _Whole:
    """A file whose last line may not be cut short, which the unpickler would take for a shorter name."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.read = stream.read
        self._readline = stream.readline

    def readline(self) -> bytes:
        line = self._readline()
        if not line.endswith(b"\n"):
            raise EOFError("it ends within a line")
        return line
