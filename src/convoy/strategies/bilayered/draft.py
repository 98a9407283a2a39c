"""The state machine's work sheet: a state taken apart, changed in small moves, and put together again.

It lives within one call of ``machine.step``; outside, states are values. The ledger's moves are here, so that the
machine itself reads as a list of rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from convoy.strategies.bilayered import ledger
from convoy.strategies.bilayered.estimate import (
    costs,
    increments,
    measured,
    overhead_seconds,
    seconds_per_sample,
)
from convoy.strategies.bilayered.ledger import FREE, Job, Segment, Slice
from convoy.strategies.bilayered.messages import Effect, Note
from convoy.strategies.bilayered.rules.idpa_mended import gain, water_fill
from convoy.strategies.bilayered.rules.whole import whole
from convoy.strategies.bilayered.state import NodeState, Received, State

WORTH = 0.05
"""Samples change hands only for a pass that is predicted to be so much shorter."""


class Draft:
    """A state under change. ``now`` is the time of the message."""

    def __init__(self, state: State, now: float) -> None:
        self.rules, self.now = state.rules, now
        self.state = state  # for the fields that stay, and the counters
        self.nodes: list[NodeState] = list(state.nodes)
        self.segments: list[Segment] = list(state.segments)
        self.jobs: dict[int, Job] = {job.id: job for job in state.jobs}
        self.orphans: list[Slice] = list(state.orphans)
        self.received: list[Received] = list(state.received)
        self.effects: list[Effect] = []

    def freeze(self) -> State:
        return replace(
            self.state,
            nodes=tuple(self.nodes),
            segments=tuple(self.segments),
            jobs=tuple(self.jobs.values()),
            orphans=tuple(self.orphans),
            received=tuple(self.received),
        )

    def put(self, **values: Any) -> None:
        """Change fields of the state that are not taken apart."""
        self.state = replace(self.state, **values)

    def set(self, node: int, **values: Any) -> None:
        self.nodes[node] = replace(self.nodes[node], **values)

    def note(self, name: str, cause: str, **data: Any) -> None:
        self.effects.append(Note(name, cause, data))

    @property
    def live(self) -> list[int]:
        return [j for j, node in enumerate(self.nodes) if node.live]

    def holdings(self, nodes: Sequence[int]) -> list[int]:
        """Samples that each of these holds."""
        counts = ledger.holdings(self.segments)
        return [counts[j] for j in nodes]

    # --- allocation ----------------------------------------------------------------------------------------------

    def allot(self) -> None:
        """Share out the next allocation batch among the live nodes, from each one's newest rate."""
        batch, live = self.state.allotted + 1, self.live
        bounds = ledger.batch_bounds(self.rules.samples, self.rules.batches)
        start, stop = bounds[batch - 1], bounds[batch]
        have = self.holdings(live)
        sizes = increments(self.rules, self.nodes, live, have, stop - start, self.now)
        for node, size in zip(live, sizes, strict=True):
            parts = ledger.due(
                self.rules.samples,
                self.rules.batches,
                self.state.goal,
                batch,
                start,
                start + size,
            )
            self.segments += [Segment(a, b, node, left, batch) for a, b, left in parts]
            start += size
        self.segments = ledger.tidy(self.segments)
        self.put(allotted=batch)
        self.note(
            "allocation",
            "timing",
            batch=batch,
            samples=dict(zip(map(str, live), sizes, strict=True)),
        )

    def rehome(self) -> None:
        """Give what nobody holds to the live nodes, by the rule of allocation: whole segments' passes and slices."""
        live = self.live
        if not live:
            return
        loose = ledger.held(self.segments, FREE)
        if loose:
            have = self.holdings(live)
            sizes = increments(self.rules, self.nodes, live, have, loose, self.now)
            for node, size in zip(live, sizes, strict=True):
                self.segments = ledger.move(self.segments, FREE, node, size)
            self.note(
                "reallocation",
                "timing",
                samples=dict(zip(map(str, live), sizes, strict=True)),
            )
        rates = seconds_per_sample(self.nodes, live, self.now)
        for orphan in self.orphans:
            if orphan.size < self.rules.batch_size * len(live):  # too small to be worth cutting
                busy = {j: sum(s.size for s in self.nodes[j].todo) * rates[j] for j in live}
                chosen = min(live, key=lambda j: (busy[j], j))
                self.set(chosen, todo=(*self.nodes[chosen].todo, orphan))
                continue
            parts = ledger.split(orphan, whole([1 / rates[j] for j in live], orphan.size))
            for node, part in zip(live, parts, strict=True):
                if part is not None:
                    self.set(node, todo=(*self.nodes[node].todo, part))
        self.orphans = []

    def welcome(self, node: int) -> None:
        """Take from the others what a node that joins a running pass should hold."""
        holding = ledger.holdings(self.segments)
        others = [j for j in self.live if j != node and holding[j]]
        if not others or holding[node]:
            return
        rates = seconds_per_sample(self.nodes, [*others, node], self.now)
        even = self.rules.allocation == "even"
        pace = {j: 1.0 if even else 1 / rates[j] for j in (*others, node)}
        have = self.holdings(others)
        size = int(sum(have) * pace[node] / sum(pace.values()))
        taken = whole([float(n) for n in have], min(size, sum(have)))
        for donor, count in zip(others, taken, strict=True):
            self.segments = ledger.move(self.segments, donor, node, count)
        self.note("reallocation", "timing", samples={str(node): size})

    def rebalance(self) -> None:
        """Mended: share out anew what all hold, when that is predicted to shorten a pass by more than WORTH."""
        holding = ledger.holdings(self.segments)
        live = [j for j in self.live if holding[j]]
        since = self.state.version - self.state.balanced
        if since < (1 if self.rules.synchronous else len(live)):  # one look at every node's newest time
            return
        if len(live) < 2 or not all(measured(self.nodes[j]) for j in live):
            return
        if any(s.left == 1 for s in self.segments):  # the last passes: who is ahead seems to hold less
            return
        self.put(balanced=self.state.version)
        fitted = costs(self.nodes, live, self.now)
        have = self.holdings(live)
        if gain([fitted[j] for j in live], have) <= WORTH:
            return
        wanted = whole(water_fill(sum(have), [fitted[j] for j in live]), sum(have))
        surplus = {j: n - w for j, n, w in zip(live, have, wanted, strict=True)}
        least = max(1, int(WORTH * sum(have) / len(live) / 2))  # less is not worth a cut through a segment
        givers = sorted((j for j in live if surplus[j] >= least), key=lambda j: (-surplus[j], j))
        for taker in sorted((j for j in live if -surplus[j] >= least), key=lambda j: (surplus[j], j)):
            while givers and -surplus[taker] >= least:
                count = min(surplus[givers[0]], -surplus[taker])
                self.segments = ledger.move(self.segments, givers[0], taker, count)
                surplus[givers[0]] -= count
                surplus[taker] += count
                if surplus[givers[0]] < least:
                    givers.pop(0)
        self.note(
            "reallocation",
            "timing",
            samples=dict(zip(map(str, live), wanted, strict=True)),
        )

    def take_over(self, node: int) -> bool:
        """Mended, at the end of a run: an idle node takes work from the one that would be busy longest.

        Returns whether there was anything worth taking."""
        others = [j for j in self.live if j != node]
        rates = seconds_per_sample(self.nodes, [*others, node], self.now)
        later = ledger.visits(self.segments)
        movable = {j: sum(s.size for s in self.nodes[j].todo) + later[j] for j in others}
        busy = {j: self._running(j, rates[j]) + movable[j] * rates[j] for j in others if movable[j]}
        donor = max(busy, key=lambda j: (busy[j], -j), default=node)
        if donor == node:
            return False
        wanted = min(int(busy[donor] / (rates[node] + rates[donor])), movable[donor])
        if wanted < self.rules.batch_size:
            return False
        if not self.rules.synchronous and wanted * rates[node] < overhead_seconds(self.nodes[node]):
            return False  # the donor is through with it before
        for segment in reversed([s for s in self.segments if s.owner == donor and s.left > 0]):
            count = min(segment.size, wanted // segment.left)
            if count:
                self.segments = ledger.move(self.segments, donor, node, count)
                wanted -= count * segment.left
        for piece in reversed(self.nodes[donor].todo):
            count = min(piece.size, wanted) // self.rules.batch_size * self.rules.batch_size
            if count:
                kept, given = ledger.split(piece, (piece.size - count, count))
                rest = tuple(p for p in self.nodes[donor].todo if p != piece)
                self.set(donor, todo=rest if kept is None else (*rest, kept))
                if given is not None:
                    self.set(node, todo=(*self.nodes[node].todo, given))
                wanted -= count
        return True

    def _running(self, node: int, rate: float) -> float:
        """Seconds that the node's round should still take."""
        lease = self.nodes[node].lease
        return 0.0 if lease is None else max(0.0, lease.piece.size * rate - (self.now - lease.at))

    # --- passes --------------------------------------------------------------------------------------------------

    def end_pass(self, node: int) -> None:
        """The node is through with its pass: note its time, share out what this is the occasion for."""
        state = self.nodes[node]
        if state.pass_samples:
            passes = (*state.passes, (state.pass_samples, state.pass_seconds))[-8:]
            self.set(node, passes=passes, pass_samples=0, pass_seconds=0.0)
            while self.state.allotted < min(state.number + 1, self.rules.batches):
                self.allot()
            if self.rules.mended and self.state.allotted == self.rules.batches:
                self.rebalance()

    def begin_pass(self, node: int) -> None:
        """A job over all that the node holds and that has passes left, if there is any."""
        mine = [s for s in self.segments if s.owner == node and s.left > 0]
        if not mine:
            return
        number = max(self.nodes[node].number + 1, min(s.first for s in mine))
        chosen = {s for s in mine if s.first <= number}
        job = Job(
            self.state.next_job,
            number,
            ledger.join((s.start, s.stop) for s in chosen),
            sum(s.size for s in chosen),
        )
        self.segments = ledger.tidy(replace(s, left=s.left - 1) if s in chosen else s for s in self.segments)
        self.jobs[job.id] = job
        self.put(next_job=job.id + 1)
        self.set(node, number=number, todo=(Slice(job.id, 0, job.size),))

    def count(self, piece: Slice) -> None:
        """The slice is merged."""
        job = self.jobs[piece.job]
        done = job.done + piece.size
        if done == job.size:
            del self.jobs[piece.job]
        else:
            self.jobs[piece.job] = replace(job, done=done)
        self.put(accepted=self.state.accepted + piece.size)

    def bury(self, node: int) -> None:
        """This life of the node is over; its work is nobody's."""
        dying = self.nodes[node]
        if dying.lease is not None:
            self.orphans.append(dying.lease.piece)
            self.put(again=self.state.again + dying.lease.piece.size)
        self.orphans += dying.todo
        self.set(
            node,
            live=False,
            lease=None,
            todo=(),
            pass_samples=0,
            pass_seconds=0.0,
            idle_at=None,
            quality=None,
        )
        self.segments = ledger.tidy(replace(s, owner=FREE) if s.owner == node else s for s in self.segments)
        self.rehome()
