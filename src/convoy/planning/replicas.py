"""Forecast of replicas on nodes of their own: ``BiLayered`` by its own state machine, in virtual time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec

from convoy.graph.machine import measure_machine
from convoy.planning.comparison import Refused, Row, options_of
from convoy.planning.measures import activations, contention, weights
from convoy.strategies.base import Loss, Strategy
from convoy.strategies.bilayered import BiLayered
from convoy.strategies.bilayered.state import Rules
from convoy.strategies.bilayered.virtual import Script, Simulated, simulate
from convoy.strategies.pipelined.balance_bench import Bench
from convoy.strategies.pipelined.planner import available_threads

EPOCH = 100
"""Mini-batches that an epoch is taken to have: how often nodes push depends on it."""
PASSES = 6
CALL_SECONDS = 2e-3
"""A message through Ray on one machine, there and handled."""
MESSAGE_BYTES_PER_SECOND = 2.5e8
"""What goes through Ray's store is written, read and checked."""
MERGE_TOUCHES = 6
"""How often the server touches a byte of a push: checks, difference, sum, version kept."""


def bilayered(bench: Bench, loss: Loss, asked: Strategy | None = None) -> Iterator[Row | Refused]:
    """Nodes on the cores at hand, in actors where Ray is installed; without it, all in one thread."""
    threads = available_threads(bench.settings)
    strategy = asked if isinstance(asked, BiLayered) else BiLayered(nodes=max(2, threads))
    if asked is None and find_spec("ray") is not None:
        strategy = replace(strategy, engine="ray")
    elif asked is None:
        yield Refused(
            "bilayered --engine ray", "ray is not installed, so all nodes train in one thread (convoy-train[ray])"
        )
    nodes = len(strategy.speeds)
    size = sum(bench.graph.parameter_bytes.values()) + sum(b.nbytes for b in bench.graph.buffers.values())
    found = run(bench, strategy, threads, size)
    steps = found.state.accepted / bench.samples
    inline = strategy.engine != "ray"
    per_step = found.seconds / steps
    states = found.state.nodes
    busy = tuple(node.worked / found.seconds for node in states)
    waited = max(node.waited / max(node.worked + node.waited, 1e-12) for node in states)
    lag = max(float(node.lag) for node in states)
    alone = activations(bench) + weights(bench)
    push = size / 2 if strategy.deltas == "bfloat16" else size
    pushes = sum(node.pushes for node in states) / steps
    yield Row(
        "bilayered", options_of(strategy) + ("" if inline else f" --threads {max(1, threads // nodes)}"),
        per_step, busy if not inline else (1.0,), (alone + size,) * nodes, lag,
        f"{nodes} replicas, merged by {strategy.update}", exact=False,
        note=f"nodes wait {waited:.0%} of the time and send {push * pushes * EPOCH / 1e6:.1f} MB in an epoch, "
        f"taken to have {EPOCH} mini-batches; staleness is in versions, one a local pass",
    )  # fmt: skip


def run(bench: Bench, strategy: BiLayered, threads: int, size: int) -> Simulated:
    """A short run in virtual time. Where all nodes train in one thread, one after the other, it is of that thread."""
    inline, nodes = strategy.engine != "ray", len(strategy.speeds)
    each = threads if inline else max(1, threads // nodes)
    crowd = 1 if inline else nodes * each / threads  # more nodes than cores: they take turns
    company = 1.0 if inline or threads == 1 else contention(bench)
    seconds = bench.whole(each) * company * max(1.0, crowd) / bench.samples
    fastest = max(strategy.speeds)
    merge = MERGE_TOUCHES * size / measure_machine().bytes_per_second
    script = Script(
        tuple(seconds * (nodes if inline else 1.0) * fastest / speed for speed in strategy.speeds),
        speeds=strategy.speeds,
        send_seconds=0.0 if inline else CALL_SECONDS + size / MESSAGE_BYTES_PER_SECOND,
        serve_seconds=merge,
    )
    rules = Rules(
        samples=EPOCH * bench.samples,
        batch_size=bench.samples,
        update=strategy.update,
        allocation=strategy.allocation,
        batches=strategy.batches_for(PASSES),
        round=None if isinstance(strategy.round, str) else strategy.round,
    )
    return simulate(rules, script, PASSES, verify=False)
