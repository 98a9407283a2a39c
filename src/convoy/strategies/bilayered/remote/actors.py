"""What runs in the actors: a node, and the parameter server. They answer plain values and flat arrays."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from convoy.engines.ray.failure import describe
from convoy.errors import InternalError
from convoy.strategies.bilayered.journal import Journal
from convoy.strategies.bilayered.layout import Flat, Layout
from convoy.strategies.bilayered.messages import from_row, to_row
from convoy.strategies.bilayered.node import Lease, Node
from convoy.strategies.bilayered.parcel import Parcel
from convoy.strategies.bilayered.remote.recipe import Recipe
from convoy.strategies.bilayered.remote.rows import effect_row
from convoy.strategies.bilayered.server import Server
from convoy.strategies.bilayered.state import State

GROUPS = {"work": 1, "health": 1}
"""Concurrency groups of both actors: a busy one answers ``beat``."""


def about() -> dict[str, Any]:
    """Who this is."""
    return {"process": os.getpid(), "machine": platform.node()}


class NodeActor:
    """Holds a ``Node`` and does one round after the other."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._node: Node | None = None

    def install(self, recipe: Recipe) -> dict[str, Any]:
        """``about()``, or a failure as plain values."""
        try:
            self._node = recipe.node(self._index)
        except Exception as error:
            return {"failed": describe(error)}
        return about()

    def probe(self) -> dict[str, Any]:
        """How fast it trains, in samples a second; or a failure as plain values."""
        try:
            return {"speed": self._running.probe()}
        except Exception as error:
            return {"failed": describe(error)}

    def reset(self) -> None:
        """A new incarnation begins."""
        self._running.reset()

    def work(self, header: dict[str, Any], weights: list[Any]) -> tuple[dict[str, Any], Flat | None]:
        """A round; ``weights``: the reference to the version that it begins with. Fetching it belongs to the round."""
        import ray

        began = time.perf_counter()
        try:
            flat: Flat = ray.get(weights[0])
            push, report, parcel = self._running.work(Lease.parse(header), flat)
        except Exception as error:
            return {"failed": describe(error)}, None
        push = replace(push, seconds=time.perf_counter() - began)
        answer = {"push": to_row(push), "report": report.header(), "form": parcel.form, "bytes": parcel.bytes}
        return answer, parcel.arrays

    def beat(self) -> None:
        """Answered at any time, unless the process stands still."""

    @property
    def _running(self) -> Node:
        if self._node is None:
            raise InternalError(f"node {self._index} was used before it was installed")
        return self._node


class ServerActor:
    """Holds a ``Server`` with its journal in ``folder``."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._server: Server | None = None

    def install(
        self,
        layout: dict[str, Any],
        state: dict[str, Any],
        mark: int | None,
        versions: list[tuple[int, Any]],
        recipe: Recipe | None,
    ) -> dict[str, Any]:
        """Begin with ``state``, or with the journal of version ``mark``. ``versions``: references to weights by number;
        ``recipe``: where quality is measured. Returns ``about()``, or a failure as plain values."""
        import ray

        try:
            flats = {number: ray.get(reference) for number, reference in versions}
            begin, journal = State.from_dict(state), Journal(self._folder)
            if mark is not None:
                found = {number: (header, flat) for number, header, flat in journal.read()}
                if mark not in found:
                    raise InternalError(f"the journal lacks version {mark}, which was acknowledged")
                header, flats[mark] = found[mark]
                begin = State.from_dict(header["state"])
            weights = flats.pop(begin.version)
            quality = None if recipe is None else recipe.quality()
            self._server = Server(begin.rules, Layout.parse(layout), weights, quality=quality, journal=journal)
            self._server.restore(begin, flats, weights)
        except Exception as error:
            return {"failed": describe(error)}
        return about()

    def handle(self, row: dict[str, Any], form: str, parcel: list[Any]) -> tuple[dict[str, Any], Flat | None]:
        """Hear one message. ``parcel``: the reference to its arrays, if it has any. Answers the effects and the state
        behind them, and the weights where there is a new version."""
        import ray

        try:
            arrays = [ray.get(reference) for reference in parcel]
        except Exception as error:  # the machine that held them is gone
            return {"lost": str(error).strip().partition("\n")[0]}, None
        try:
            server = self._running
            before = server.state.version
            effects = server.handle(from_row(row), Parcel(form, arrays[0]) if arrays else None)
        except Exception as error:
            return {"failed": describe(error)}, None
        answer = {"effects": [effect_row(effect) for effect in effects], "state": server.state.to_dict()}
        return answer, None if server.state.version == before else server.weights

    def beat(self) -> None:
        """Answered at any time, unless the process stands still."""

    @property
    def _running(self) -> Server:
        if self._server is None:
            raise InternalError("the server was used before it was installed")
        return self._server
