"""Nodes in virtual time: scripted speeds, transfers, deaths, freezes and returns around the pure state machine.

It drives tests, the inline engine (which trains the replicas for real and only takes its times from here) and
simulations of clusters that nobody has. Equal times are broken by node number, so every run is the same.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from convoy.errors import InternalError
from convoy.strategies.bilayered.checks import check
from convoy.strategies.bilayered.estimate import limit_seconds
from convoy.strategies.bilayered.machine import step
from convoy.strategies.bilayered.messages import (
    Begin,
    Dead,
    Effect,
    Goal,
    Grant,
    Join,
    Merge,
    Message,
    Push,
    Refuse,
    Tick,
    from_row,
    to_row,
)
from convoy.strategies.bilayered.state import Rules, State


@dataclass(frozen=True, slots=True)
class Fault:
    """At ``at`` seconds, ``node`` is "kill"ed, "freeze"s or becomes "slow" by ``factor``. A killed node comes back as a
    new incarnation at ``back``, a frozen one goes on there; None: never. ``noticed``: seconds until the engine sees a
    kill; None leaves it to the lease."""

    at: float
    node: int
    kind: str
    back: float | None = None
    noticed: float | None = None
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Script:
    """How a cluster behaves. Per node: ``seconds_per_sample``, ``fixed_seconds`` of a round, nominal ``speeds`` (None:
    equal). ``send_seconds``: weights on their way, each way; ``serve_seconds``: what the server needs for a push,
    one after the other. ``joins``: node → when it comes, where that is not at the start."""

    seconds_per_sample: tuple[float, ...]
    fixed_seconds: tuple[float, ...] | None = None
    speeds: tuple[float, ...] | None = None
    send_seconds: float = 0.0
    serve_seconds: float = 0.0
    joins: Mapping[int, float] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()

    @property
    def nodes(self) -> int:
        return len(self.seconds_per_sample)

    def speed(self, node: int) -> float:
        return 1.0 if self.speeds is None else self.speeds[node]


class Cluster:
    """What is under way, by time. ``hear`` effects, ask for the ``next`` message."""

    def __init__(self, script: Script) -> None:
        self.script, self.now, self.server_busy = script, 0.0, 0.0
        self._free_at = 0.0  # when the server is through with what has arrived
        self._heap: list[tuple[float, int, int, dict[str, Any]]] = []
        self._order = 0
        self._factor = [1.0] * script.nodes
        self._incarnation = [0] * script.nodes
        self._down: dict[int, float | None] = {}  # frozen or killed nodes, and when they go on
        self._suspects: set[int] = set()
        for j in range(script.nodes):
            if j in script.joins:
                self._at(script.joins[j], j, to_row(Join(j, 0, script.speed(j))))
        for fault in script.faults:
            values = {name: getattr(fault, name) for name in ("node", "back", "noticed", "factor")}
            self._at(fault.at, fault.node, {"kind": fault.kind, **values})

    def opening(self) -> list[Message]:
        """The messages with which a run begins, after its goal."""
        present = [j for j in range(self.script.nodes) if j not in self.script.joins]
        return [*(Join(j, 0, self.script.speed(j)) for j in present), Begin()]

    def hear(self, effects: Iterable[Effect]) -> None:
        """Take up what the server asks for."""
        for effect in effects:
            if isinstance(effect, Grant) and effect.incarnation == self._incarnation[effect.node]:
                self._work(effect)
            elif isinstance(effect, Refuse) and (effect.reason, effect.incarnation) == (
                "dead",
                self._incarnation[effect.node],
            ):
                self._return(effect.node, self.now + self.script.send_seconds)

    def next(self, state: State) -> Message | None:
        """The earliest message, its time in ``at``; None when nothing is under way."""
        while self._heap or self._suspects:
            expiry = self._expiry(state)
            if not self._heap and expiry is None:
                return None
            if expiry is not None and (not self._heap or expiry < self._heap[0][0]):
                self.now = max(self.now, expiry)
                return Tick(self.now)
            time, _, _, row = heapq.heappop(self._heap)
            message = self._happen(time, dict(row))
            if message is not None:
                return message
        return None

    # --- inside --------------------------------------------------------------------------------------------------

    def _at(self, time: float, node: int, row: dict[str, Any]) -> None:
        self._order += 1
        heapq.heappush(self._heap, (time, node, self._order, row))

    def _work(self, grant: Grant) -> None:
        script, node = self.script, grant.node
        if any(r["kind"] == "push" and r["node"] == node and r["sequence"] == grant.sequence for r in self._rows()):
            return  # only said again
        fixed = script.fixed_seconds[node] if script.fixed_seconds else 0.0
        took = fixed + grant.samples * script.seconds_per_sample[node] * self._factor[node]
        took += 2 * script.send_seconds
        push = Push(node, grant.incarnation, grant.sequence, took)
        if node in self._down:
            back = self._down[node]
            if back is not None:
                self._at(back + took, node, {**to_row(push), "arrived": False})
            return
        self._at(self.now + took, node, {**to_row(push), "arrived": False})

    def _happen(self, time: float, row: dict[str, Any]) -> Message | None:
        kind, node = row["kind"], row["node"]
        self.now = max(self.now, time)
        if kind == "push" and not row.pop("arrived", True):
            if self.script.serve_seconds == 0:
                return from_row({**row, "at": self.now})
            self._free_at = max(self._free_at, self.now) + self.script.serve_seconds
            self.server_busy += self.script.serve_seconds
            row["seconds"] += self._free_at - self.now
            self._at(self._free_at, node, {**row, "arrived": True})
            return None
        row.pop("arrived", None)
        if kind in ("join", "thaw"):
            self._down.pop(node, None)
            self._suspects.discard(node)
        if kind in ("push", "join", "dead"):
            return from_row({**row, "at": self.now})
        if kind == "thaw":
            return None
        self._fault(kind, node, row)
        return None

    def _fault(self, kind: str, node: int, row: Mapping[str, Any]) -> None:
        self._suspects.add(node)
        if kind == "slow":
            self._factor[node] *= row["factor"]
            return
        if node in self._down:
            return
        back = row["back"]
        self._down[node] = back
        if kind == "kill":
            self._heap = [e for e in self._heap if not (e[3]["kind"] == "push" and e[3]["node"] == node)]
            if row["noticed"] is not None:
                self._at(
                    self.now + row["noticed"],
                    node,
                    to_row(Dead(node, self._incarnation[node])),
                )
            if back is not None:
                self._return(node, back)
        else:  # what it was doing goes on where it stopped
            frozen = [e for e in self._heap if e[3]["kind"] == "push" and e[3]["node"] == node]
            self._heap = [e for e in self._heap if e not in frozen]
            if back is not None:
                for time, _, _, pushed in frozen:
                    self._at(
                        time + back - self.now,
                        node,
                        {**pushed, "seconds": pushed["seconds"] + back - self.now},
                    )
                self._at(back, node, {"kind": "thaw", "node": node})
        heapq.heapify(self._heap)

    def _return(self, node: int, time: float) -> None:
        self._incarnation[node] += 1
        self._at(
            time,
            node,
            to_row(Join(node, self._incarnation[node], self.script.speed(node))),
        )

    def _expiry(self, state: State) -> float | None:
        """When the first lease of a node that something happened to runs out."""
        times = []
        for j in sorted(self._suspects):
            node = state.nodes[j] if j < len(state.nodes) else None
            limit = limit_seconds(state, j) if node is not None else None
            if node is not None and node.live and node.lease is not None and limit is not None:
                times.append((node.lease.at + limit) * (1 + 1e-9) + 1e-9)
        return min(times, default=None)

    def _rows(self) -> list[dict[str, Any]]:
        return [entry[3] for entry in self._heap]

    # --- a checkpoint --------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        return {
            "now": self.now,
            "server_busy": self.server_busy,
            "free_at": self._free_at,
            "heap": [list(entry) for entry in sorted(self._heap, key=lambda e: e[:3])],
            "order": self._order,
            "factor": list(self._factor),
            "incarnation": list(self._incarnation),
            "down": [[j, back] for j, back in self._down.items()],
            "suspects": sorted(self._suspects),
        }

    def restore(self, values: Mapping[str, Any]) -> None:
        self.now, self.server_busy, self._free_at = (
            values["now"],
            values["server_busy"],
            values["free_at"],
        )
        self._heap = [(time, node, order, dict(row)) for time, node, order, row in values["heap"]]
        heapq.heapify(self._heap)
        self._order = values["order"]
        self._factor, self._incarnation = (
            list(values["factor"]),
            list(values["incarnation"]),
        )
        self._down = {int(j): back for j, back in values["down"]}
        self._suspects = set(values["suspects"])


@dataclass(slots=True)
class Simulated:
    """``log``: the messages in the order in which the server heard them; ``merges``: the versions made and when."""

    state: State
    log: list[Message]
    merges: list[tuple[float, Merge]]
    seconds: float
    server_busy: float


def simulate(
    rules: Rules,
    script: Script,
    passes: int,
    qualities: Sequence[float] = (),
    verify: bool = True,
) -> Simulated:
    """A whole run without any training. ``qualities``: of each node, always the same (default 0.5)."""
    cluster, state = Cluster(script), State(rules)
    log: list[Message] = []
    merges: list[tuple[float, Merge]] = []

    def handle(message: Message) -> None:
        nonlocal state
        if isinstance(message, Push):
            quality = qualities[message.node] if qualities else 0.5
            message = replace(message, quality=quality)
        log.append(message)
        state, effects = step(state, message)
        if verify:
            check(state)
        merges.extend((message.at, effect) for effect in effects if isinstance(effect, Merge))
        cluster.hear(effects)

    for message in (Goal(passes), *cluster.opening()):
        handle(message)
    while not state.done:
        following = cluster.next(state)
        if following is None:
            raise InternalError(f"nothing is under way, and {state.total - state.accepted} samples are owed")
        handle(following)
    return Simulated(state, log, merges, cluster.now, cluster.server_busy)
