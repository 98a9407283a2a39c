"""The parameter server of the bi-layered strategy: ``step(state, message)`` gives the next state and what to do.

Two rules hold for this file. It is pure: no clock, no randomness, no I/O, no tensors, so that every interleaving can
be visited in tests and a recorded run replays. And the order of effects is the order to carry them out in: a merge
comes before the acknowledgement that lets the node forget, and before the grants that hand out the new weights; the
caller journals in between.

    message            what happens
    Goal(passes)       more passes over all samples are owed
    Begin              the first allocation batch is shared out, every live node gets a lease
    Join               an incarnation begins; in a running pass it gets a share of what the others hold
    Push               asynchronous: merged at once, or refused; synchronous: kept until all have pushed
    Dead, Tick         leases end, unfinished samples go to others

A push is merged if it answers the node's lease: same incarnation, same sequence. Everything else is an old echo.
"""

from __future__ import annotations

import math

from convoy.strategies.bilayered.draft import Draft
from convoy.strategies.bilayered.estimate import limit_seconds, overhead_seconds, seconds_per_sample
from convoy.strategies.bilayered.ledger import Segment, Slice, tidy
from convoy.strategies.bilayered.messages import (
    Acknowledge,
    Begin,
    Dead,
    Done,
    Effect,
    Goal,
    Grant,
    Join,
    Merge,
    Message,
    Part,
    Push,
    Refuse,
    Tick,
)
from convoy.strategies.bilayered.rules.agwu import agwu
from convoy.strategies.bilayered.rules.agwu_mended import agwu_mended, is_stale
from convoy.strategies.bilayered.rules.sgwu import sgwu
from convoy.strategies.bilayered.rules.sgwu_mended import sgwu_mended
from convoy.strategies.bilayered.state import Lease, NodeState, Received, State

AT_ONCE = 0.75
"""Of what a node will still do by its speed, so much at most in one round: the rest evens out what comes otherwise."""
SHORTEST = 4
"""Mini-batches, at least, of a round that is short only because the end is near."""
WORTH_A_PUSH = 4.0
"""So many times as long as what a push costs besides takes such a round, at least."""


def step(state: State, message: Message) -> tuple[State, tuple[Effect, ...]]:
    """The next state, and effects in the order to carry them out. Every message is safe to repeat."""
    draft = Draft(state, message.at)
    was_done = state.done
    match message:
        case Goal(passes=passes):
            _goal(draft, passes)
        case Begin():
            _begin(draft)
        case Join():
            _join(draft, message)
        case Push():
            _push(draft, message)
        case Dead(node=node, incarnation=incarnation):
            if node < len(draft.nodes) and draft.nodes[node].incarnation == incarnation and draft.nodes[node].live:
                _lost(draft, node, "dead")
        case Tick():
            for node in _expired(state, message.at):
                _lost(draft, node, "expired")
    _wake(draft)
    if draft.state.done and not was_done:
        for j in draft.live:
            _end_wait(draft, j)
        draft.effects.append(Done(draft.state.version))
    return draft.freeze(), tuple(draft.effects)


# --- membership --------------------------------------------------------------------------------------------------


def _goal(draft: Draft, passes: int) -> None:
    more = passes - draft.state.goal
    if more <= 0:
        return
    draft.segments = tidy(Segment(s.start, s.stop, s.owner, s.left + more, s.first) for s in draft.segments)
    draft.put(goal=passes)


def _begin(draft: Draft) -> None:
    if draft.state.begun or draft.state.goal < 1 or not draft.live:
        return
    draft.put(begun=True)
    draft.allot()


def _join(draft: Draft, message: Join) -> None:
    node = message.node
    draft.nodes += [NodeState()] * (node + 1 - len(draft.nodes))
    known = draft.nodes[node]
    if known.live and message.incarnation == known.incarnation:
        _grant(draft, node)  # an echo: say again what it works on
        return
    if message.incarnation <= known.incarnation:
        draft.put(dead=draft.state.dead + 1)
        draft.effects.append(Refuse(node, message.incarnation, 0, "dead"))
        return
    if known.live:
        _lost(draft, node, "replaced")
    known = draft.nodes[node]
    draft.nodes[node] = NodeState(
        live=True,
        incarnation=message.incarnation,
        speed=message.speed,
        number=max(
            (draft.nodes[j].number - 1 for j in draft.live),
            default=max(known.number - 1, 0),
        ),
        steps=known.steps,
        samples=known.samples,
        pushes=known.pushes,
        refused=known.refused,
        worked=known.worked,
        waited=known.waited,
        idle_at=draft.now,
    )
    draft.note("join", "timing", node=node, incarnation=message.incarnation)
    if draft.state.begun:
        draft.rehome()
        draft.welcome(node)


def _lost(draft: Draft, node: int, reason: str) -> None:
    lease = draft.nodes[node].lease
    draft.note(
        reason,
        "timing",
        node=node,
        incarnation=draft.nodes[node].incarnation,
        leased_again=0 if lease is None else lease.piece.size,
    )
    draft.bury(node)
    if draft.rules.synchronous:
        _close_barrier(draft)


def _expired(state: State, now: float) -> list[int]:
    found = []
    for j, node in enumerate(state.nodes):
        limit = limit_seconds(state, j)
        if node.live and node.lease is not None and limit is not None and now - node.lease.at > limit:
            found.append(j)
    return found


# --- work --------------------------------------------------------------------------------------------------------


def _wake(draft: Draft) -> None:
    """Give a lease to every live node that has none; behind a barrier, only when all are through it."""
    if not draft.state.begun or draft.state.done:
        return
    busy = any(draft.nodes[j].lease is not None for j in draft.live)
    if draft.rules.synchronous and (busy or draft.received):
        return
    idle = [j for j in draft.live if draft.nodes[j].lease is None]
    for j in idle:  # times of all of them first: an allocation looks at everyone's newest
        if not draft.nodes[j].todo:
            draft.end_pass(j)
    for j in idle:
        if not draft.nodes[j].todo:
            draft.begin_pass(j)
    more = draft.rules.mended and draft.state.allotted == draft.rules.batches
    for j in idle:
        if more and not draft.nodes[j].todo:
            more = draft.take_over(j)
            if not draft.nodes[j].todo:
                draft.begin_pass(j)
        if draft.nodes[j].todo:
            _lease(draft, j)


def _lease(draft: Draft, node: int) -> None:
    state, rules = draft.nodes[node], draft.rules
    first, *rest = state.todo
    size = first.size if rules.round is None else min(first.size, _round(draft, node) * rules.batch_size)
    size = min(size, _before_the_end(draft, node, size))
    piece = Slice(first.job, first.start, first.start + size)
    if size < first.size:
        rest.insert(0, Slice(first.job, first.start + size, first.stop))
    lease = Lease(state.sequence + 1, draft.state.version, piece, state.steps, draft.now)
    _end_wait(draft, node)
    draft.set(
        node,
        lease=lease,
        todo=tuple(rest),
        idle_at=None,
        steps=state.steps + -(-size // rules.batch_size),
    )
    _grant(draft, node)


def _round(draft: Draft, node: int) -> int:
    """Mini-batches of a round. Mended, behind a barrier: in proportion to what the nodes hold, ``round`` on average,
    so that they arrive together."""
    rules = draft.rules
    count = rules.round or 1
    if rules.synchronous and rules.mended:
        sizes = [sum(s.size for s in draft.segments if s.owner == j) for j in draft.live]
        own = sum(s.size for s in draft.segments if s.owner == node)
        if own and sum(sizes):
            count = max(1, round(count * len(sizes) * own / sum(sizes)))
    return count


def _before_the_end(draft: Draft, node: int, size: int) -> int:
    """At most so many samples for a round of ``size``. Mended, without a barrier: a part of what the node will still
    do, by its speed, so that rounds get shorter towards the end of a run and all nodes end together (guided
    self-scheduling, Polychronopoulos and Kuck 1987); but not so short that pushes cost more than they save."""
    rules, live = draft.rules, draft.live
    if rules.synchronous or not rules.mended or len(live) < 2:
        return size
    leases = [lease for j in live if (lease := draft.nodes[j].lease) is not None]
    rest = draft.state.total - draft.state.accepted - sum(lease.piece.size for lease in leases)
    if rest > 4 * size * len(live):  # the end is far
        return size
    rates = seconds_per_sample(draft.nodes, live, draft.now)
    share = 1 / (rates[node] * math.fsum(1 / rate for rate in rates.values()))
    least = max(SHORTEST * rules.batch_size, WORTH_A_PUSH * overhead_seconds(draft.nodes[node]) / rates[node])
    most = math.ceil(max(AT_ONCE * rest * share, least) / rules.batch_size) * rules.batch_size
    return size if size - most < least else most  # what would be left is not worth a push


def _grant(draft: Draft, node: int) -> None:
    """Say what the node works on, if anything; idempotent."""
    state = draft.nodes[node]
    lease = state.lease
    if lease is None:
        return
    job = draft.jobs[lease.piece.job]
    draft.effects.append(
        Grant(
            node,
            state.incarnation,
            lease.sequence,
            lease.base,
            job.number,
            job.ranges,
            lease.piece.start,
            lease.piece.stop,
            lease.step,
        )
    )


def _end_wait(draft: Draft, node: int) -> None:
    state = draft.nodes[node]
    if state.idle_at is not None:
        draft.set(
            node,
            waited=state.waited + max(0.0, draft.now - state.idle_at),
            idle_at=draft.now,
        )


# --- pushes ------------------------------------------------------------------------------------------------------


def _push(draft: Draft, push: Push) -> None:
    node, incarnation, sequence = push.node, push.incarnation, push.sequence
    known = draft.nodes[node] if node < len(draft.nodes) else NodeState()
    if incarnation != known.incarnation or not known.live:
        draft.put(dead=draft.state.dead + 1)
        draft.effects.append(Refuse(node, incarnation, sequence, "dead"))
        return
    if sequence <= known.sequence:  # merged or refused before: the answer was lost
        draft.put(duplicates=draft.state.duplicates + 1)
        waiting = {(r.node, r.incarnation, r.sequence) for r in draft.received}
        if (node, incarnation, sequence) not in waiting:
            draft.effects.append(Acknowledge(node, incarnation, sequence, again=True))
            _grant(draft, node)
        return
    lease = known.lease
    if lease is None or sequence != lease.sequence:
        draft.effects.append(Refuse(node, incarnation, sequence, "order"))
        return
    size = lease.piece.size
    lag = draft.state.version - lease.base
    draft.set(
        node,
        sequence=sequence,
        lease=None,
        idle_at=draft.now,
        lag=lag,
        quality=push.quality,
        worked=known.worked + push.seconds,
        waited=known.waited + max(0.0, draft.now - lease.at - push.seconds),  # for the lease, and to be heard
        rounds=(*known.rounds, (size, push.seconds))[-8:],
        pass_samples=known.pass_samples + size,
        pass_seconds=known.pass_seconds + push.seconds,
    )
    working = [j for j in draft.live if draft.nodes[j].lease is not None or j == node]
    reason = None
    if not push.finite:
        reason = "not finite"
        draft.put(not_finite=draft.state.not_finite + 1)
    elif draft.rules.update == "agwu-mended" and is_stale(lag, len(draft.live)):
        reason = "stale"
        draft.put(stale=draft.state.stale + 1)
    if reason is not None:
        draft.put(again=draft.state.again + size)
        draft.set(node, todo=(lease.piece, *draft.nodes[node].todo), refused=known.refused + 1)
        draft.note(
            "refused",
            "timing" if reason == "stale" else "data",
            node=node,
            sequence=sequence,
            why=reason,
        )
        draft.effects.append(Refuse(node, incarnation, sequence, reason))
    elif draft.rules.synchronous:
        draft.received.append(Received(node, incarnation, sequence, lease.base, lease.piece, push.quality))
    else:
        _merge_now(draft, push, lease, working)
    if draft.rules.synchronous:
        _close_barrier(draft)


def _merge_now(draft: Draft, push: Push, lease: Lease, working: list[int]) -> None:
    """One asynchronous push makes one version."""
    version, size = draft.state.version + 1, lease.piece.size
    leases = [lease if j == push.node else draft.nodes[j].lease for j in working]
    bases = [other.base for other in leases if other is not None]
    if draft.rules.update == "agwu":
        weight = agwu(lease.base, bases, version, 1.0 if push.quality is None else push.quality)
    else:
        sizes = [other.piece.size for other in leases if other is not None]
        qualities = [q for j in draft.live if (q := draft.nodes[j].quality) is not None]
        weight = agwu_mended(size, sizes, version - 1 - lease.base, len(draft.live), push.quality, qualities)
    how = "assign" if weight == 1 and lease.base == version - 1 else "add"
    part = Part(push.node, push.incarnation, push.sequence, lease.base, weight, size)
    draft.put(version=version)
    _merged(draft, push.node, lease.piece)
    draft.effects.append(Merge(version, how, (part,)))
    draft.effects.append(Acknowledge(push.node, push.incarnation, push.sequence))


def _close_barrier(draft: Draft) -> None:
    """When no live node works any more, what was received makes one version."""
    if not draft.received or any(draft.nodes[j].lease is not None for j in draft.live):
        return
    received = sorted(draft.received, key=lambda r: r.node)
    sizes = [r.piece.size for r in received]
    qualities = [0.0 if r.quality is None else r.quality for r in received]
    if draft.rules.update == "sgwu":
        weights = sgwu(qualities)
    else:
        weights = sgwu_mended(sizes, qualities if draft.rules.update == "sgwu-mended" else None)
    version = draft.state.version + 1
    draft.put(version=version)
    parts = tuple(
        Part(r.node, r.incarnation, r.sequence, r.base, weight, size)
        for r, weight, size in zip(received, weights, sizes, strict=True)
    )
    for r in received:
        _merged(draft, r.node, r.piece)
    draft.received = []
    draft.effects.append(Merge(version, "assign" if len(parts) == 1 else "average", parts))
    draft.effects += [Acknowledge(part.node, part.incarnation, part.sequence) for part in parts]


def _merged(draft: Draft, node: int, piece: Slice) -> None:
    state = draft.nodes[node]
    draft.set(node, samples=state.samples + piece.size, pushes=state.pushes + 1)
    draft.count(piece)
