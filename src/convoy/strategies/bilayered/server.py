"""The parameter server with its tensors: messages and parcels in, effects out; the state machine decides.

An engine calls ``handle`` with one message after the other and carries the effects to the nodes. NumPy only: an actor
that wraps it needs no torch, unless it measures quality.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from convoy.errors import InternalError
from convoy.strategies.bilayered.journal import Journal
from convoy.strategies.bilayered.layout import Flat, Layout
from convoy.strategies.bilayered.machine import step
from convoy.strategies.bilayered.merging import add, average
from convoy.strategies.bilayered.messages import Begin, Effect, Merge, Message, Part, Push, Refuse
from convoy.strategies.bilayered.parcel import Parcel, open_parcel
from convoy.strategies.bilayered.state import Rules, State

Quality: TypeAlias = "Callable[[Flat], float]"
"""Accuracy of these weights on the held-out part, 0 … 1."""

_Opened: TypeAlias = "tuple[Flat, Flat | None]"


class Server:
    """``weights`` of the newest version, and those that nodes still work from."""

    def __init__(
        self,
        rules: Rules,
        layout: Layout,
        weights: Flat,
        *,
        quality: Quality | None = None,
        journal: Journal | None = None,
    ) -> None:
        self.state = State(rules)
        self.layout = layout
        self._quality, self._journal = quality, journal
        self._versions: dict[int, Flat] = {0: weights}
        self._opened: dict[tuple[int, int, int], _Opened] = {}

    @classmethod
    def recover(cls, folder: Path, layout: Layout, *, quality: Quality | None = None) -> Server | None:
        """The server as its journal left it; None where there is none. What was not acknowledged comes again."""
        journal = Journal(folder)
        found = journal.read()
        if not found:
            return None
        version, header, weights = found[-1]
        state = State.from_dict(header["state"])
        made = cls(state.rules, layout, weights, quality=quality, journal=journal)
        made.restore(state, {v: flat for v, _, flat in found if v != version}, weights)
        return made

    @property
    def weights(self) -> Flat:
        return self._versions[self.state.version]

    def version(self, number: int) -> Flat:
        """The weights of a version that some node's lease begins with."""
        return self._versions[number]

    @property
    def bases(self) -> dict[int, Flat]:
        """Older versions that nodes still work from."""
        return {number: flat for number, flat in self._versions.items() if number != self.state.version}

    def restore(self, state: State, bases: dict[int, Flat], weights: Flat) -> None:
        """Go on from ``state``, whose newest weights are ``weights``. Nothing may wait at the barrier."""
        if state.received:
            raise InternalError("a server is saved when nothing waits at its barrier")
        self.state, self._versions = state, {**bases, state.version: weights}

    def expects(self, push: Push) -> bool:
        """Whether the push answers a lease, so that its parcel is wanted."""
        node = self.state.nodes[push.node] if push.node < len(self.state.nodes) else None
        if node is None or not node.live or node.incarnation != push.incarnation or node.lease is None:
            return False
        return push.sequence == node.lease.sequence

    def handle(self, message: Message, parcel: Parcel | None = None) -> tuple[Effect, ...]:
        """Carry out one message; when it returns, merges are done and journalled, and the effects may be told.

        ``Refuse`` with reason "base": the server has forgotten the version that the weights began with (it came back
        from its journal); send the same push again as a delta. Raises RunError for a parcel of another model.
        """
        if isinstance(message, Push) and self.expects(message):
            message, refused = self._open(message, parcel)
            if refused is not None:
                return (refused,)
        before = self.state
        self.state, effects = step(before, message)
        merges = [effect for effect in effects if isinstance(effect, Merge)]
        for merge in merges:
            self._versions[merge.version] = self._merged(before, merge)
        if isinstance(message, Push) and any(isinstance(e, Refuse) for e in effects):
            self._opened.pop((message.node, message.incarnation, message.sequence), None)
        needed = {node.lease.base for node in self.state.nodes if node.lease is not None} | {self.state.version}
        self._versions = {number: flat for number, flat in self._versions.items() if number in needed}
        if self._journal is not None and (merges or isinstance(message, Begin)):
            self._journal.write(self.state.version, {"state": self.state.to_dict()}, self.weights)
        return effects

    def _open(self, push: Push, parcel: Parcel | None) -> tuple[Push, Refuse | None]:
        """The push with what its parcel says about it."""
        if parcel is None:
            raise InternalError(f"push {push.sequence} of node {push.node} came without its weights")
        lease = self.state.nodes[push.node].lease
        assert lease is not None
        base = self._versions.get(lease.base)
        if parcel.form == "weights" and base is None:
            return push, Refuse(push.node, push.incarnation, push.sequence, "base")
        values, deltas, finite = open_parcel(parcel, self.layout, base, f"node {push.node}")
        quality = None
        if finite and self._quality is not None:
            quality = self._quality(_whole(values, deltas, self.weights))
        self._opened[push.node, push.incarnation, push.sequence] = (values, deltas)
        return replace(push, finite=push.finite and finite, quality=quality), None

    def _merged(self, before: State, merge: Merge) -> Flat:
        current = self._versions[before.version]
        opened = [self._opened.pop((part.node, part.incarnation, part.sequence)) for part in merge.parts]
        if merge.how == "add":
            values, deltas = opened[0]
            if deltas is None:
                raise InternalError("a push is merged whose base is not there")
            return add(self.layout, current, merge.parts[0].weight, deltas, values)
        nodes = [_whole(values, deltas, current) for values, deltas in opened]
        if merge.how == "assign":
            return nodes[0]
        return average(self.layout, _weights(merge.parts), nodes)


def _weights(parts: tuple[Part, ...]) -> list[float]:
    return [part.weight for part in parts]


def _whole(values: Flat, deltas: Flat | None, current: Flat) -> Flat:
    """W_j; from the newest weights where the version that it began with is gone."""
    missing = [key for key in current if key not in values]
    return {**values, **{key: current[key] + (deltas or {})[key] for key in missing}}
