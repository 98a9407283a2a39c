"""The nodes of a run in real time: who works on what, who died, who came back. In place of virtual time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from convoy.engines.ray.failure import revive
from convoy.engines.ray.session import Session
from convoy.errors import InternalError
from convoy.strategies.bilayered.estimate import limit_seconds
from convoy.strategies.bilayered.messages import Begin, Dead, Effect, Join, Message, Push, Refuse, Tick, from_row
from convoy.strategies.bilayered.node import Lease, Report
from convoy.strategies.bilayered.remote.actors import GROUPS, NodeActor
from convoy.strategies.bilayered.remote.clock import Clock
from convoy.strategies.bilayered.remote.server import LOOK_SECONDS, slay
from convoy.strategies.bilayered.state import State
from convoy.strategies.bilayered.virtual import Cluster, Script

BEAT_SECONDS = 2.0
SILENCE_SECONDS = 30.0
"""A node that answered nothing for so long is given up until it does, also before its rounds were ever measured."""
REPLACE_SECONDS = 60.0
"""After so long a silence, another actor is started in its place."""
INSTALL_SECONDS = 180.0
_DEATHS = 4  # of a node without a push between them, before it is not started again


@dataclass(frozen=True, slots=True)
class Sent:
    """A round that came back. ``parcel``: (form, reference to the arrays); times of the driver's ``perf_counter``."""

    report: Report
    parcel: tuple[str, Any]
    bytes: int
    base: int
    began: float
    ended: float


@dataclass(slots=True)
class Member:
    """An actor. ``asked``: the round that it works on. ``speed``: as probed, in samples a second. ``given_up``: its
    incarnation was declared dead."""

    actor: Any = None
    incarnation: int = 0
    process: dict[str, Any] | None = None
    asked: tuple[Lease, Any, Any, float] | None = None
    speed: float | None = None
    probe: Any = None
    beat: Any = None
    heard: float = 0.0
    deaths: int = 0
    given_up: bool = False


class Crew(Cluster):
    """``recipe``: reference to what actors are made from. ``incarnations``: with which each node begins. ``probes``:
    whether nodes measure their speed before they join; at the opening all at once, as they will work."""

    def __init__(
        self,
        session: Session,
        recipe: Any,
        script: Script,
        *,
        threads: int,
        clock: Clock,
        incarnations: Iterable[int],
        watchdog_seconds: float,
        probes: bool = False,
    ) -> None:
        super().__init__(script)
        self._session, self._recipe, self._threads, self._clock = session, recipe, threads, clock
        self._watchdog, self._probes = watchdog_seconds, probes
        self._opening = probes
        self.members = [Member(incarnation=i) for i in incarnations]
        self._installing: dict[Any, tuple[int, float]] = {}  # node, and since when
        self._ready: deque[Message] = deque()
        self._sent: dict[tuple[int, int, int], Sent] = {}
        self._alone_since: float | None = None

    # --- Cluster -------------------------------------------------------------------------------------------------

    def opening(self) -> list[Message]:
        """Start all actors, and wait for them. Raises what a node raised when it was made."""
        for j in range(len(self.members)):
            self._spawn(j)
        self._until_all_are_there()
        if self._probes:
            self._opening = False
            for j, member in enumerate(self.members):
                if member.process is not None:
                    self._ask_speed(j)
            self._until_all_are_there()
        joins = list(self._ready)
        self._ready.clear()
        return [*sorted(joins, key=lambda m: m.node if isinstance(m, Join) else -1), Begin(self._clock.now)]

    def hear(self, effects: Iterable[Effect]) -> None:
        """A node whose incarnation is dead joins as the next one."""
        for effect in effects:
            if isinstance(effect, Refuse) and effect.reason == "dead":
                member = self.members[effect.node]
                if member.incarnation == effect.incarnation and member.process is not None:
                    self._join_again(effect.node)

    def next(self, state: State) -> Message | None:
        """What the server is to hear next; None where no node is left or none was heard of for too long."""
        while True:
            if not self._ready:
                self._listen()
            self.now = self._clock.look()
            if self._ready:
                self._alone_since = None
                return self._ready.popleft()
            if self._run_out(state):
                return Tick(self.now)
            self._look_for_silence()
            if not self._ready and self._left_alone(state):
                return None

    def to_dict(self) -> dict[str, Any]:
        """Virtual time in which all nodes come back as new incarnations: what is under way is not saved."""
        after = Cluster(self.script)
        after.now = self._clock.now
        for j, member in enumerate(self.members):
            after._incarnation[j] = member.incarnation
            after._return(j, after.now)
        return after.to_dict()

    # --- rounds --------------------------------------------------------------------------------------------------

    def send(self, lease: Lease, weights: Any) -> None:
        """Let the node work, unless it does already. ``weights``: reference to the version it begins with."""
        grant = lease.grant
        member = self.members[grant.node]
        if member.process is None or member.incarnation != grant.incarnation or member.given_up:
            return
        key = (grant.node, grant.incarnation, grant.sequence)
        if member.asked is not None or key in self._sent:
            return
        work = member.actor.work.options(concurrency_group="work", num_returns=2)
        answered, arrays = work.remote(lease.header(), [weights])
        member.asked = (lease, answered, arrays, time.perf_counter())

    def take(self, push: Push) -> Sent:
        """What came with a push; once."""
        return self._sent.pop((push.node, push.incarnation, push.sequence))

    def lose(self, node: int) -> Dead:
        """What the node made went down with its machine."""
        dead = Dead(node, self.members[node].incarnation, self._clock.look())
        self._died(node)
        self._ready = deque(m for m in self._ready if m != replace(dead, at=getattr(m, "at", 0.0)))
        return dead

    def close(self) -> None:
        """End all actors."""
        for member in self.members:
            if member.actor is not None:
                self._session.kill(member.actor)
                slay(member.process or {})
                member.actor = member.process = member.asked = None

    # --- inside --------------------------------------------------------------------------------------------------

    def _until_all_are_there(self) -> None:
        while self._installing or any(member.probe is not None for member in self.members):
            self._listen()
            self._look_for_silence()

    def _spawn(self, j: int) -> None:
        member = self.members[j]
        member.process = member.asked = member.probe = member.beat = None
        member.actor = self._session.spawn(NodeActor, j, cpus=self._threads, groups=GROUPS)
        install = member.actor.install.options(concurrency_group="work").remote(self._recipe)
        self._installing[install] = (j, self._clock.look())

    def _listen(self) -> None:
        """Wait for an answer, and take up all that are there."""
        now = self._clock.look()
        waiting: dict[Any, tuple[str, int]] = {ref: ("install", j) for ref, (j, _) in self._installing.items()}
        for j, member in enumerate(self.members):
            if member.process is None:
                continue
            if member.beat is None and now - member.heard >= BEAT_SECONDS:
                member.beat = member.actor.beat.options(concurrency_group="health").remote()
            if member.beat is not None:
                waiting[member.beat] = ("beat", j)
            if member.asked is not None:
                waiting[member.asked[1]] = ("work", j)
            if member.probe is not None:
                waiting[member.probe] = ("probe", j)
        if not waiting:
            time.sleep(LOOK_SECONDS)
            return
        ray = self._session.ray
        ready, _ = ray.wait(list(waiting), num_returns=1, timeout=LOOK_SECONDS)
        for reference in ready:
            what, j = waiting[reference]
            try:
                answer = ray.get(reference)
            except ray.exceptions.RayError:
                self._installing.pop(reference, None)
                self._died(j)
                continue
            self.members[j].heard = self._clock.look()
            if what == "install":
                self._installed(j, reference, answer)
            elif what == "work":
                self._worked(j, answer)
            elif what == "probe":
                self._probed(j, answer)
            else:
                self.members[j].beat = None
        for j, member in enumerate(self.members):
            busy = member.process is None or any(x is not None for x in (member.asked, member.probe, member.beat))
            if member.given_up and not busy:
                self._join_again(j)  # it answers again, and has nothing to push

    def _installed(self, j: int, reference: Any, answer: dict[str, Any]) -> None:
        del self._installing[reference]
        if "failed" in answer:
            raise revive(answer["failed"])
        member = self.members[j]
        member.process = answer
        if member.incarnation > 0:
            member.actor.reset.options(concurrency_group="work").remote()
        if not self._probes:
            self._join(j)
        elif not self._opening:
            self._ask_speed(j)

    def _ask_speed(self, j: int) -> None:
        self.members[j].probe = self.members[j].actor.probe.options(concurrency_group="work").remote()

    def _probed(self, j: int, answer: dict[str, Any]) -> None:
        member = self.members[j]
        member.probe = None
        if "failed" in answer:
            raise revive(answer["failed"])
        member.speed = float(answer["speed"])
        self._join(j)

    def _join(self, j: int) -> None:
        member = self.members[j]
        speed = self.script.speed(j) if member.speed is None else member.speed
        self._ready.append(Join(j, member.incarnation, speed, self._clock.now))

    def _worked(self, j: int, answer: dict[str, Any]) -> None:
        member = self.members[j]
        assert member.asked is not None
        (lease, _, arrays, began), member.asked = member.asked, None
        if "failed" in answer:
            raise revive(answer["failed"])
        push = from_row({**answer["push"], "at": self._clock.now})
        grant = lease.grant
        key = (grant.node, grant.incarnation, grant.sequence)
        if not isinstance(push, Push) or (push.node, push.incarnation, push.sequence) != key:
            raise InternalError(f"node {j} answered {push} to lease {key}")
        report = Report(**answer["report"])
        parcel = (str(answer["form"]), arrays)
        self._sent[key] = Sent(report, parcel, int(answer["bytes"]), grant.base, began, time.perf_counter())
        member.deaths = 0
        self._ready.append(push)

    def _join_again(self, j: int) -> None:
        member = self.members[j]
        member.incarnation += 1
        member.given_up = False
        self._sent = {key: sent for key, sent in self._sent.items() if key[0] != j}
        member.actor.reset.options(concurrency_group="work").remote()
        self._join(j)

    def _died(self, j: int) -> None:
        """Its samples go to others, and an actor in its place is started, unless it dies again and again."""
        member = self.members[j]
        self._session.kill(member.actor)
        slay(member.process or {})
        self._sent = {key: sent for key, sent in self._sent.items() if key[0] != j}
        self._ready = deque(m for m in self._ready if getattr(m, "node", None) != j)
        self._ready.append(Dead(j, member.incarnation, self._clock.now))
        member.process = member.asked = member.probe = member.beat = None
        member.given_up = False
        member.incarnation += 1
        member.deaths += 1
        if member.deaths < _DEATHS:
            self._spawn(j)

    def _run_out(self, state: State) -> bool:
        """Whether a lease is over."""
        for j, node in enumerate(state.nodes):
            limit = limit_seconds(state, j) if node.live and node.lease is not None else None
            if limit is not None and node.lease is not None and self.now - node.lease.at > limit:
                return True
        return False

    def _look_for_silence(self) -> None:
        for j, member in enumerate(self.members):
            silent = 0.0 if member.process is None else self._clock.now - member.heard
            if silent > REPLACE_SECONDS:
                self._died(j)
            elif silent > SILENCE_SECONDS and not member.given_up:
                member.given_up = True
                self._ready.append(Dead(j, member.incarnation, self._clock.now))
        for reference, (j, since) in list(self._installing.items()):
            if self._clock.now - since > INSTALL_SECONDS:
                del self._installing[reference]
                self._died(j)

    def _left_alone(self, state: State) -> bool:
        """Whether no node is live, and none has come back for longer than the watchdog allows."""
        if any(node.live for node in state.nodes):
            self._alone_since = None
            return False
        if self._alone_since is None:
            self._alone_since = self.now
        nobody = not self._installing and all(member.process is None for member in self.members)
        return nobody or self.now - self._alone_since > self._watchdog
