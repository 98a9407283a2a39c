"""Every interleaving of a few nodes and pushes, breadth first: deaths, freezes, returns, repeated and late messages.

A world is the server's state and what is under way to it. A granted round's push is under way from the grant on, since
it may arrive at any time; a death takes it back, or leaves it as a late echo.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from convoy.strategies.bilayered import ledger
from convoy.strategies.bilayered.checks import check
from convoy.strategies.bilayered.machine import step
from convoy.strategies.bilayered.messages import (
    Begin,
    Dead,
    Goal,
    Grant,
    Join,
    Merge,
    Message,
    Push,
    Refuse,
)
from convoy.strategies.bilayered.state import Rules, State


@dataclass(frozen=True)
class World:
    state: State
    alive: tuple[int, ...]  # per node the incarnation whose process runs, -1 for none
    last: tuple[int, ...]  # per node the newest incarnation
    under_way: frozenset[Message]
    deaths: int
    freezes: int
    returns: int
    repeats: int
    merged: frozenset[tuple[int, int, int]] = frozenset()  # (node, incarnation, sequence)
    places: frozenset[tuple[int, int]] = frozenset()  # (job, place)
    counts: tuple[int, ...] = ()  # per position, how often it was merged


def start(rules: Rules, nodes: int, passes: int, **budget: int) -> World:
    state = State(rules)
    for message in (Goal(passes), *(Join(j, 0, speed=j + 1.0) for j in range(nodes))):
        state, _ = step(state, message)
    world = World(
        state,
        (0,) * nodes,
        (0,) * nodes,
        frozenset(),
        budget.get("deaths", 0),
        budget.get("freezes", 0),
        budget.get("returns", 0),
        budget.get("repeats", 0),
        counts=(0,) * rules.samples,
    )
    return deliver(world, Begin())


def deliver(world: World, message: Message) -> World:
    before = world.state
    state, effects = step(before, message)
    check(state)
    under_way, merged = set(world.under_way) - {message}, set(world.merged)
    places, counts = set(world.places), list(world.counts)
    last = list(world.last)
    for effect in effects:
        if isinstance(effect, Merge):
            assert effect.version == before.version + 1
            assert sum(part.weight for part in effect.parts) <= 1 + 1e-9
            for part in effect.parts:
                assert (part.node, part.incarnation, part.sequence) not in merged, "an update was applied twice"
                merged.add((part.node, part.incarnation, part.sequence))
                for job, place, position in merged_places(before, part.node, part.sequence):
                    assert (job, place) not in places, "a sample was merged twice in one local pass"
                    places.add((job, place))
                    counts[position] += 1
        elif isinstance(effect, Grant):
            known = before.nodes[effect.node].lease if effect.node < len(before.nodes) else None
            if known is None or known.sequence != effect.sequence:  # else it is only said again
                assert effect.base == state.version, "a node starts from the newest version"
            if world.alive[effect.node] == effect.incarnation:
                under_way.add(Push(effect.node, effect.incarnation, effect.sequence, quality=0.5))
        elif isinstance(effect, Refuse) and effect.reason == "dead" and world.alive[effect.node] == effect.incarnation:
            last[effect.node] += 1  # a node that was only frozen comes back as another
            under_way.add(Join(effect.node, last[effect.node]))
    alive = list(world.alive)
    if isinstance(message, Join):
        alive[message.node] = max(alive[message.node], message.incarnation)
        under_way |= {  # the grant said at once
            Push(e.node, e.incarnation, e.sequence, quality=0.5)
            for e in effects
            if isinstance(e, Grant) and e.incarnation == alive[e.node]
        }
    return replace(
        world,
        state=state,
        alive=tuple(alive),
        last=tuple(last),
        under_way=frozenset(under_way),
        merged=frozenset(merged),
        places=frozenset(places),
        counts=tuple(counts),
    )


def merged_places(before: State, node: int, sequence: int) -> Iterator[tuple[int, int, int]]:
    """(job, place, position) of a push that is merged; the order within a job does not matter here."""
    waiting = [r.piece for r in before.received if (r.node, r.sequence) == (node, sequence)]
    lease = before.nodes[node].lease
    piece = waiting[0] if waiting else lease.piece if lease is not None else None
    assert piece is not None
    job = next(j for j in before.jobs if j.id == piece.job)
    positions = [p for a, b in job.ranges for p in range(a, b)]
    for place in range(piece.start, piece.stop):
        yield job.id, place, positions[place]


def following(world: World) -> Iterator[World]:
    for message in world.under_way:
        yield deliver(world, message)
        if world.repeats and isinstance(message, Push | Join):
            again = deliver(world, message)
            yield replace(again, under_way=again.under_way | {message}, repeats=world.repeats - 1)
    for j, incarnation in enumerate(world.alive):
        if incarnation >= 0 and world.deaths:
            dead = replace(
                world,
                alive=tuple(-1 if k == j else a for k, a in enumerate(world.alive)),
                under_way=world.under_way | {Dead(j, incarnation)},
                deaths=world.deaths - 1,
            )
            yield dead  # its push arrives after all
            sent = frozenset(m for m in dead.under_way if not (isinstance(m, Push) and m.node == j))
            yield replace(dead, under_way=sent)
        if incarnation >= 0 and world.freezes:  # its lease ran out though it lives
            yield deliver(replace(world, freezes=world.freezes - 1), Dead(j, incarnation))
        if incarnation < 0 and world.returns:
            back = world.last[j] + 1
            yield replace(
                world,
                last=tuple(back if k == j else n for k, n in enumerate(world.last)),
                under_way=world.under_way | {Join(j, back)},
                returns=world.returns - 1,
            )


def explore(world: World) -> int:
    """Visit all worlds; returns how many there are."""
    seen, queue = {world}, deque([world])
    while queue:
        here = queue.popleft()
        if here.state.done:
            proof(here)
        elif not here.under_way:
            assert all(a < 0 for a in here.alive), "nothing is under way, yet samples are owed"
        for there in following(here):
            if there not in seen:
                seen.add(there)
                queue.append(there)
    return len(seen)


def proof(world: World) -> None:
    """At the end of the run: K·N samples in all, each as often as its allocation batch is due."""
    rules, passes = world.state.rules, world.state.goal
    assert sum(world.counts) == world.state.accepted == passes * rules.samples
    bounds = ledger.batch_bounds(rules.samples, rules.batches)
    for batch in range(1, rules.batches + 1):
        base = passes + (rules.batches - 1) // 2 - batch + 1
        for position in range(bounds[batch - 1], bounds[batch]):
            assert world.counts[position] in (base, base + 1)
    assert world.state.owed == 0
    assert not world.state.jobs


UPDATES = ("agwu", "agwu-mended", "sgwu", "local-sgd")


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize(
    ("allocation", "batches", "rounds"),
    [("even", 1, None), ("idpa", 2, None), ("idpa-mended", 3, None), ("even", 1, 1)],
)
def test_two_nodes_with_a_death_and_a_return(update: str, allocation: str, batches: int, rounds: int | None) -> None:
    rules = Rules(
        samples=4,
        batch_size=2,
        update=update,
        allocation=allocation,
        batches=batches,
        round=rounds,
        grace_seconds=0,
    )
    visited = explore(start(rules, 2, 2, deaths=1, returns=1))
    assert visited > 100


@pytest.mark.parametrize("update", UPDATES)
def test_two_nodes_with_a_freeze_and_a_repeated_message(update: str) -> None:
    rules = Rules(samples=2, batch_size=1, update=update, allocation="idpa", round=1)
    assert explore(start(rules, 2, 2, freezes=1, repeats=1)) > 100


@pytest.mark.parametrize("update", ["agwu-mended", "sgwu-mended"])
def test_three_nodes(update: str) -> None:
    rules = Rules(samples=4, batch_size=2, update=update, allocation="idpa-mended", batches=1)
    assert explore(start(rules, 3, 1, deaths=2)) > 300


@pytest.mark.slow
@pytest.mark.parametrize("update", UPDATES)
def test_three_nodes_with_all_that_can_happen(update: str) -> None:
    rules = Rules(samples=6, batch_size=2, update=update, allocation="idpa-mended", batches=1)
    assert explore(start(rules, 3, 1, deaths=2, freezes=1, returns=1, repeats=1)) > 5000


def test_the_explorer_sees_a_broken_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the check of sequences away, and an interleaving shows an update that is applied twice."""
    from convoy.strategies.bilayered import machine

    honest = machine._push

    def forgetful(draft, push):  # type: ignore[no-untyped-def]
        known = draft.nodes[push.node]
        if known.lease is not None and push.sequence <= known.sequence:
            push = replace(push, sequence=known.lease.sequence)
        honest(draft, push)

    monkeypatch.setattr(machine, "_push", forgetful)
    rules = Rules(samples=4, batch_size=2, update="agwu-mended", round=1)
    with pytest.raises(AssertionError, match="twice"):
        explore_counting_pushes(start(rules, 2, 2, repeats=1))


def explore_counting_pushes(world: World) -> None:
    """As ``explore``, and no message may be merged a second time."""
    seen, queue = {world}, deque([world])
    while queue:
        here = queue.popleft()
        for message in here.under_way:
            there = deliver(here, message)
            if isinstance(message, Push):
                known = here.state.nodes[message.node]
                if message.sequence <= known.sequence:
                    assert there.state.accepted == here.state.accepted, "an update was merged twice"
        for there in following(here):
            if there not in seen:
                seen.add(there)
                queue.append(there)
