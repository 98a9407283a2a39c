"""Whole runs in virtual time, named by what happens in them: who waits, who gets how much, what deaths cost."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convoy.strategies.bilayered.checks import check
from convoy.strategies.bilayered.estimate import shares
from convoy.strategies.bilayered.machine import SHORTEST, step
from convoy.strategies.bilayered.messages import Begin, Goal, Join, Push, from_row, to_row
from convoy.strategies.bilayered.state import ALLOCATIONS, UPDATES, Rules, State
from convoy.strategies.bilayered.virtual import (
    Cluster,
    Fault,
    Script,
    Simulated,
    simulate,
)

FAST_AND_SLOW = Script((0.001, 0.002))


def rules(**values: object) -> Rules:
    return Rules(**{"samples": 1200, "batch_size": 10, "grace_seconds": 0.0, **values})  # type: ignore[arg-type]


def waiting(run: Simulated) -> float:
    """Waited for, as a share of all node time."""
    waited = sum(node.waited for node in run.state.nodes)
    return waited / (waited + sum(node.worked for node in run.state.nodes))


def test_the_state_machine_knows_no_torch() -> None:
    code = (
        "import sys; from convoy.strategies.bilayered import machine, virtual, checks;"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules, 'loaded'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_even_split_with_a_barrier_waits_for_the_slow_node() -> None:
    run = simulate(rules(update="local-sgd", allocation="even"), FAST_AND_SLOW, 10)
    assert run.seconds == pytest.approx(10 * 600 * 0.002)
    assert waiting(run) == pytest.approx(0.25, abs=0.01)  # the fast node, half of the time


def test_measured_allocation_reaches_the_ideal_gain() -> None:
    even = simulate(rules(update="local-sgd", allocation="even"), FAST_AND_SLOW, 12)
    for allocation in ("idpa", "idpa-mended"):
        run = simulate(
            rules(update="agwu-mended", allocation=allocation, batches=4),
            FAST_AND_SLOW,
            12,
        )
        assert shares(simulate(rules(allocation=allocation, batches=4), FAST_AND_SLOW, 12).state)
        assert even.seconds / run.seconds > 1 + 0.9 * 0.5  # at least 90 % of what (1 + 2)/2 gains
        assert waiting(run) < 0.03


def test_a_wrong_nominal_speed_is_corrected_by_the_second_batch() -> None:
    lied = Script((0.001, 0.002), speeds=(1.0, 4.0))
    run = simulate(rules(update="sgwu", allocation="idpa", batches=3), lied, 6)
    worked = [node.worked / sum(n for n, _ in node.passes) if node.passes else 0 for node in run.state.nodes]
    assert worked
    first, later = (node.passes[-1][0] for node in run.state.nodes)
    assert first / later == pytest.approx(2, abs=0.05)


def test_equal_nodes_train_equally_much() -> None:
    for allocation in ALLOCATIONS:
        for batches in (1, 2, 3):
            run = simulate(rules(allocation=allocation, batches=batches), Script((0.001, 0.001)), 6)
            assert [node.samples for node in run.state.nodes] == [3600, 3600]


def test_fixed_costs_give_a_slow_link_fewer_samples() -> None:
    # 1 ms · n_0 = 300 ms + 1 ms · n_1 and n_0 + n_1 = 1200
    script = Script((0.001, 0.001), fixed_seconds=(0.0, 0.3))
    run = simulate(rules(update="sgwu", allocation="idpa-mended", batches=4), script, 8)
    assert [node.passes[4][0] for node in run.state.nodes] == [750, 450]


def test_published_allocation_is_frozen_and_the_mended_one_follows_a_slowdown() -> None:
    slowed = Script((0.001, 0.001), faults=(Fault(3.0, 1, "slow", factor=3.0),))
    frozen = simulate(rules(allocation="idpa", batches=2, patience=100.0), slowed, 20)
    moved = simulate(rules(allocation="idpa-mended", batches=2, patience=100.0), slowed, 20)
    assert moved.seconds < 0.75 * frozen.seconds


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_a_killed_node_loses_nothing(update: str, allocation: str) -> None:
    for fault in (
        Fault(2.5, 0, "kill", noticed=0.1),
        Fault(2.5, 0, "kill"),  # seen by its lease alone
        Fault(2.5, 1, "kill", back=4.0, noticed=0.01),
        Fault(2.5, 1, "freeze", back=40.0),
    ):
        script = Script((0.002, 0.001, 0.003), faults=(fault,))
        for size in (None, 3):
            run = simulate(
                rules(update=update, allocation=allocation, batches=2, round=size),
                script,
                6,
            )
            assert run.state.accepted == 6 * 1200


def test_a_frozen_node_that_goes_on_is_refused_and_comes_back_from_the_newest_version() -> None:
    script = Script((0.001, 0.001), faults=(Fault(1.0, 1, "freeze", back=9.0),))
    run = simulate(rules(allocation="even"), script, 20)
    node = run.state.nodes[1]
    assert node.incarnation == 1
    assert run.state.dead == 1  # the push of its first life
    assert run.state.again == 600
    assert node.samples > 1200  # it went on afterwards


def test_a_node_joins_a_run_that_goes_on() -> None:
    script = Script((0.001, 0.001, 0.001), joins={2: 3.0})
    for allocation in ALLOCATIONS:
        run = simulate(rules(allocation=allocation), script, 20)
        assert run.state.nodes[2].samples > 1200
        assert run.seconds < simulate(rules(allocation=allocation), Script((0.001, 0.001)), 20).seconds


def test_stale_pushes_are_refused_and_their_samples_leased_again() -> None:
    # While node 1 is at its round, node 0 merges far more than 4 · 2 versions.
    script = Script((0.001, 0.05))
    run = simulate(rules(allocation="even", round=1, patience=1e9), script, 1)
    assert run.state.stale > 0
    assert run.state.again == 10 * run.state.stale
    assert run.state.accepted == 1200


def test_the_server_serves_one_push_after_the_other() -> None:
    script = Script((0.001,) * 8, serve_seconds=0.5)
    run = simulate(rules(allocation="even"), script, 4)
    assert run.server_busy == pytest.approx(0.5 * 8 * 4)
    assert run.seconds >= run.server_busy


def test_a_log_of_arrivals_replays_to_the_same_state() -> None:
    script = Script((0.002, 0.001, 0.003), faults=(Fault(2.0, 0, "kill", back=3.0, noticed=0.1),))
    run = simulate(rules(allocation="idpa-mended", batches=3), script, 6)
    state = State(run.state.rules)
    for row in json.loads(json.dumps([to_row(message) for message in run.log])):
        state, _ = step(state, from_row(row))
    assert state == run.state


def test_state_and_cluster_survive_json_in_the_middle_of_a_run() -> None:
    def play(cut: int | None) -> State:
        script = Script((0.002, 0.001), faults=(Fault(1.0, 0, "freeze", back=2.0),))
        cluster, state = Cluster(script), State(rules(batches=3, update="sgwu"))
        from convoy.strategies.bilayered.messages import Goal

        queue, count = [Goal(4), *cluster.opening()], 0
        while not state.done:
            message = queue.pop(0) if queue else cluster.next(state)
            assert message is not None
            if isinstance(message, Push):
                message = Push(
                    message.node,
                    message.incarnation,
                    message.sequence,
                    message.seconds,
                    0.5,
                    True,
                    message.at,
                )
            state, effects = step(state, message)
            cluster.hear(effects)
            count += 1
            if count == cut:
                saved = json.loads(json.dumps({"state": state.to_dict(), "cluster": cluster.to_dict()}))
                assert State.from_dict(saved["state"]) == state
                state, cluster = State.from_dict(saved["state"]), Cluster(script)
                cluster.restore(saved["cluster"])
        return state

    whole = play(None)
    assert all(play(cut) == whole for cut in (5, 7, 9))


faults = st.builds(
    Fault,
    st.floats(0.1, 20),
    st.integers(0, 2),
    st.sampled_from(["kill", "freeze", "slow"]),
    back=st.one_of(st.none(), st.floats(20, 60)),
    noticed=st.floats(0.01, 2),
    factor=st.floats(0.3, 5),
)


@settings(max_examples=120)
@given(
    st.lists(st.floats(1e-3, 1e-1), min_size=3, max_size=4),
    st.sampled_from(UPDATES),
    st.sampled_from(ALLOCATIONS),
    st.integers(1, 5),
    st.one_of(st.none(), st.integers(1, 4)),
    st.lists(faults, max_size=3),
    st.integers(20, 150),
)
def test_whatever_happens_the_ledger_adds_up(
    seconds: list[float],
    update: str,
    allocation: str,
    batches: int,
    size: int | None,
    happens: list[Fault],
    samples: int,
) -> None:
    happens = [f for f in happens if f.node != 0 or f.kind == "slow"]  # node 0 stays, so that somebody finishes
    made = rules(
        samples=samples,
        batch_size=4,
        update=update,
        allocation=allocation,
        batches=batches,
        round=size,
    )
    run = simulate(made, Script(tuple(seconds), faults=tuple(happens)), 4)  # checks the ledger at every message
    assert run.state.accepted == 4 * samples
    assert not run.state.jobs
    check(run.state)


# --- the end of a run ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [(0.001, 0.002), (0.001, 0.003), (0.001, 0.001, 0.002, 0.005)])
@pytest.mark.parametrize("passes", [1, 3, 8])
def test_rounds_get_shorter_towards_the_end_so_that_all_end_together(seconds: tuple[float, ...], passes: int) -> None:
    script = Script(seconds, speeds=tuple(1 / s for s in seconds))
    run = simulate(rules(allocation="idpa-mended", batches=min(4, 2 * passes - 1)), script, passes)
    ideal = passes * 1200 / sum(1 / s for s in seconds)
    shortest = SHORTEST * 10 * max(seconds)
    assert run.seconds <= ideal + shortest
    sizes = [part.samples for _, merge in run.merges for part in merge.parts]
    assert len(sizes) < 12 * passes * len(seconds)
    assert sum(size < SHORTEST * 10 for size in sizes) <= 3 * len(seconds)  # what is left over, or taken over


def test_where_pushes_are_dear_rounds_are_not_cut_so_short() -> None:
    """Waiting that is no work is told apart by the times of lease and push."""

    def shortest(overhead: float) -> int:
        state, sizes = State(rules(allocation="idpa-mended", batches=1, samples=4800)), []
        for message in (Goal(1), Join(0, 0), Join(1, 0), Begin()):
            state, _ = step(state, message)
        while not state.done:
            ends = {j: n.lease.at + n.lease.piece.size / 1000 for j, n in enumerate(state.nodes) if n.lease is not None}
            j = min(ends, key=lambda j: (ends[j], j))
            lease = state.nodes[j].lease
            assert lease is not None
            sizes.append(lease.piece.size)
            push = Push(j, 0, lease.sequence, lease.piece.size / 1000, at=ends[j] + overhead)
            state, _ = step(state, push)
            check(state)
        pushes = [node.pushes for node in state.nodes]
        assert [node.waited for node in state.nodes] == pytest.approx([n * overhead for n in pushes], abs=0.2)
        return min(sizes[:-3])

    assert shortest(0.0) <= 80
    assert shortest(0.08) >= 200
