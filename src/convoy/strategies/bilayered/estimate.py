"""What a node will need for so many samples, from what it was measured to need; and shares that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from convoy.strategies.bilayered.rules.idpa import first_batch, later_batch
from convoy.strategies.bilayered.rules.idpa_mended import Cost, fit_cost, water_fill
from convoy.strategies.bilayered.rules.whole import whole
from convoy.strategies.bilayered.state import NodeState, Rules, State

UNSURE = 3.0
"""A node that was never measured gets so much more time than the slowest one that was."""


def measured(node: NodeState) -> tuple[tuple[int, float], ...]:
    """(samples, seconds) of its last local passes; rounds, while no pass is over."""
    return node.passes or node.rounds


def seconds_per_sample(nodes: Sequence[NodeState], live: Sequence[int], now: float) -> dict[int, float]:
    """t_j, of the newest local pass. A node without one: by its speed, from the others' seconds times their speeds,
    but no less than its running round already shows."""
    known = {j: measured(nodes[j])[-1] for j in live if measured(nodes[j])}
    rates = {j: seconds / samples for j, (samples, seconds) in known.items()}
    unit = median([rate * nodes[j].speed for j, rate in rates.items()]) if rates else 1.0
    for j in live:
        if j not in rates:
            lease = nodes[j].lease
            running = (now - lease.at) / lease.piece.size if lease is not None else 0.0
            rates[j] = max(unit / nodes[j].speed, running)
    return {j: max(rate, 1e-12) for j, rate in rates.items()}


def costs(nodes: Sequence[NodeState], live: Sequence[int], now: float) -> dict[int, Cost]:
    """The same with a fixed part, robustly, for the mended rule."""
    plain = seconds_per_sample(nodes, live, now)
    return {j: fit_cost(measured(nodes[j])) if measured(nodes[j]) else Cost(0.0, plain[j]) for j in live}


def increments(
    rules: Rules,
    nodes: Sequence[NodeState],
    live: Sequence[int],
    have: Sequence[int],
    size: int,
    now: float,
) -> tuple[int, ...]:
    """How many of ``size`` further samples each live node gets, whole and exact, beside the ``have`` it holds."""
    total = size + sum(have)
    if rules.allocation == "even":
        return whole([1.0] * len(live), size)
    if not any(measured(nodes[j]) for j in live):
        return whole(first_batch(size, [nodes[j].speed for j in live]), size)
    if rules.mended:
        fitted = costs(nodes, live, now)
        filled = water_fill(total, [fitted[j] for j in live], have)
        return whole([n - h for n, h in zip(filled, have, strict=True)], size)
    rates = seconds_per_sample(nodes, live, now)
    return whole(later_batch(total, [rates[j] for j in live], have), size)


def overhead_seconds(node: NodeState) -> float:
    """What a push costs the node besides its work, on average: until it is heard, merged, and the next lease is there.
    Behind a barrier it would be the waiting for others."""
    return node.waited / node.pushes if node.pushes else 0.0


def limit_seconds(state: State, node: int) -> float | None:
    """After how many seconds the node's lease runs out; None where nobody was measured yet."""
    lease = state.nodes[node].lease
    if lease is None:
        return None
    own = state.nodes[node].rounds
    if own:
        expected = median([t / n for n, t in own]) * lease.piece.size
        expected = max(expected, fit_cost(own).seconds(lease.piece.size))
    else:
        others = [max(t / n for n, t in other.rounds) for other in state.nodes if other.rounds]
        if not others:
            return None
        expected = max(others) * lease.piece.size * UNSURE
    return state.rules.patience * expected + state.rules.grace_seconds


def shares(state: State) -> tuple[float, ...]:
    """Of every node, the share of the samples that it holds, or held last."""
    counts = [sum(s.size for s in state.segments if s.owner == j) for j in range(len(state.nodes))]
    total = sum(counts) or 1
    return tuple(count / total for count in counts)
