"""An exception on its way from an actor to the driver, as plain values."""

from __future__ import annotations

import traceback
from typing import Any

from convoy import errors
from convoy.errors import ConvoyError, InternalError


class RemoteError(Exception):
    """Something that was raised in an actor. Its subclasses are named as what was raised there; ``trace`` is the
    traceback there, as text."""

    trace = ""


def describe(error: BaseException) -> dict[str, Any]:
    """What ``revive`` makes an exception of again."""
    hint = error.hint if isinstance(error, ConvoyError) else None
    message = error.message if isinstance(error, ConvoyError) else str(error)
    trace = "".join(traceback.format_exception(error))
    return {"kind": type(error).__name__, "message": message, "hint": hint, "trace": trace}


def revive(described: dict[str, Any]) -> Exception:
    """convoy's own errors as what they were; any other as a ``RemoteError`` of the same name."""
    kind, message = str(described["kind"]), str(described["message"])
    own = getattr(errors, kind, None)
    if isinstance(own, type) and issubclass(own, ConvoyError):
        found: Exception = own(message, hint=described["hint"])
    else:
        remote: RemoteError = type(kind if kind.isidentifier() else "RemoteError", (RemoteError,), {})(message)
        remote.trace = str(described["trace"])
        found = remote
    found.add_note(f"In the actor:\n{described['trace']}")
    return found


def said(described: dict[str, Any]) -> str:
    """``ValueError: message``, for a sentence."""
    return f"{described['kind']}: {described['message']}"


def unexpected(what: str) -> InternalError:
    return InternalError(f"{what} came to an actor, which knows nothing of it")
