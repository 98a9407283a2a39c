"""The choice of cuts on a noisy machine, simulated: what is chosen is judged by the true costs."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convoy.graph.cost_passes import typical
from convoy.graph.stage_times import Round
from convoy.graph.timed_pass import Times
from convoy.strategies.pipelined.balance import Places, search
from convoy.strategies.pipelined.balance_fit import Cuts, fitted, observed

Noise = Callable[[random.Random, float, float], float]
"""(chance, seconds since the beginning, true seconds) → seconds that are measured."""


def quiet(chance: random.Random, now: float, seconds: float) -> float:
    return seconds * chance.uniform(1.0, 1.02)


def spikes(chance: random.Random, now: float, seconds: float) -> float:
    """Five times a second another program takes the core for 5 to 40 ms: many times a node's own time."""
    count = sum(chance.random() < 5 * seconds / 10 for _ in range(10))
    return seconds * chance.uniform(1.0, 1.02) + sum(chance.uniform(0.005, 0.04) for _ in range(count))


def drift(chance: random.Random, now: float, seconds: float) -> float:
    """The clock of the processor falls to half its rate while the profile is taken."""
    return seconds * (1.0 + min(now / 5.0, 1.0)) * chance.uniform(1.0, 1.02)


def bad_minutes(chance: random.Random, now: float, seconds: float) -> float:
    """Another program: three seconds of it, three without."""
    busy = int(now / 3.0) % 2 == 0
    return seconds * (chance.uniform(1.3, 2.2) if busy else chance.uniform(1.0, 1.02))


@dataclass
class Machine:
    """Nodes with true costs, in a profile and beside each other; every measurement takes time and is disturbed."""

    alone: Sequence[float]
    together: Sequence[float]
    noise: Noise
    chance: random.Random
    now: float = 0.0
    ran: list[Cuts] = field(default_factory=list)

    def _measured(self, seconds: float) -> float:
        return self.noise(self.chance, self.now, seconds)

    def passes(self, count: int) -> list[Times]:
        made = []
        for _ in range(count):
            forward, backward = [], []
            for cost in self.alone:
                forward.append(self._measured(cost / 3))
                backward.append(self._measured(cost * 2 / 3))
                self.now += forward[-1] + backward[-1]
            made.append(Times(tuple(forward), tuple(backward)))
        return made

    def trial(self, candidates: Sequence[Cuts], seconds: float) -> list[list[Round]]:
        rounds: list[list[Round]] = [[] for _ in candidates]
        for _ in range(5):
            for place, cuts in enumerate(candidates):
                self.ran.append(cuts)
                sums = [sum(self.together[a:b]) for a, b in pairwise((0, *cuts, len(self.together)))]
                stages = tuple((self._measured(s / 3), self._measured(s * 2 / 3)) for s in sums)
                self.now += max(f + b for f, b in stages)
                rounds[place].append(stages)
        return rounds


def network(chance: random.Random, nodes: int) -> list[float]:
    """Convolutions of several widths with cheap nodes between them, some 0.5 s in all."""
    costs = [chance.choice((1.0, 1.0, 1.3, 0.6)) if i % 3 == 0 else chance.uniform(0.05, 0.3) for i in range(nodes)]
    return [0.5 * c / sum(costs) for c in costs]


def chosen(machine: Machine, stages: int) -> tuple[float, Places]:
    """How much slower the chosen cut is than the best by the true costs, as a share."""
    nodes = len(machine.together)
    places = Places(tuple(range(1, nodes)), stages, {}, (1.0,) * stages)
    known = typical(machine.passes(6))
    profile = [f + b for f, b in zip(known.forward, known.backward, strict=True)]
    found = search(profile, places, machine.trial, budget_seconds=60.0)
    true = machine.together
    return places.slowest(true, found.cuts) / places.slowest(true, places.best(true)) - 1.0, places


@pytest.mark.parametrize("noise", [quiet, spikes, drift, bad_minutes])
@pytest.mark.parametrize("stages", [2, 4])
def test_the_cut_stays_close_to_the_best_one(noise: Noise, stages: int) -> None:
    """Costs beside each other differ from those alone: the second half suffers more, as large activations do."""
    losses = []
    for seed in range(8):
        chance = random.Random(seed)
        alone = network(chance, 60)
        together = [c * (1.05 + 0.25 * (i > 30)) for i, c in enumerate(alone)]
        losses.append(chosen(Machine(alone, together, noise, chance), stages)[0])
    losses.sort()
    assert losses[len(losses) // 2] < (0.03 if stages == 2 else 0.05), losses  # a node is 2 or 4 % of a stage
    assert losses[-1] < 0.10, losses


def test_a_profile_that_is_wrong_throughout_is_corrected() -> None:
    """The whole profile was taken beside a program that slowed the second half of the nodes to a third."""
    chance = random.Random(1)
    true = network(chance, 60)
    wrong = [c * (3.0 if i >= 30 else 1.0) for i, c in enumerate(true)]
    machine = Machine(wrong, true, quiet, chance)
    places = Places(tuple(range(1, 60)), 2, {}, (1.0, 1.0))
    by_profile = places.slowest(true, places.best(wrong)) / places.slowest(true, places.best(true)) - 1.0
    assert by_profile > 0.3
    assert chosen(machine, 2)[0] < 0.1  # one node at the border is still taken for three times what it costs
    assert len(set(machine.ran)) > 3  # it tried more than the profile's own


def test_what_ran_is_not_left_for_what_should_gain_next_to_nothing() -> None:
    machine = Machine([1.0] * 8, [1.0] * 8, lambda chance, now, s: s, random.Random(0))
    places = Places(tuple(range(1, 8)), 2, {}, (1.0, 1.0))
    found = search([1.0] * 8, places, machine.trial, budget_seconds=60.0)
    assert found.cuts == (4,)
    assert [t.seconds for t in found.times] == pytest.approx([4.0, 4.0])
    assert found.times[0].forward_seconds == pytest.approx(4.0 / 3)


def test_without_time_one_trial_corrects_the_profile() -> None:
    machine = Machine([1.0] * 8, [1.0] * 4 + [5.0] * 4, lambda chance, now, s: s, random.Random(0))
    places = Places(tuple(range(1, 8)), 2, {}, (1.0, 1.0))
    found = search([1.0] * 8, places, machine.trial, budget_seconds=0.0)
    assert found.tried == 1 and set(machine.ran) == {(4,)}
    assert found.cuts == (6,)
    assert [t.seconds for t in found.times] == pytest.approx([14.0, 10.0], rel=0.02)


def test_a_slower_stage_moves_the_cut() -> None:
    costs = fitted([1.0] * 8, {(4,): [((1.0, 2.0), (1.0, 0.0))] * 5})
    assert sum(costs[:4]) == pytest.approx(3.0, rel=0.05)
    assert sum(costs[4:]) == pytest.approx(1.0, rel=0.15)
    assert costs[0] == pytest.approx(costs[3])


def test_a_spike_on_one_worker_does_not_move_the_shares() -> None:
    rounds: list[Round] = [((1.0, 1.0), (1.0, 1.0))] * 4 + [((1.0, 1.4), (1.0, 1.0))]
    assert observed(rounds).shares == (0.5, 0.5)


@settings(max_examples=100)
@given(
    st.lists(st.floats(0.01, 1.0), min_size=4, max_size=20),
    st.integers(0, 2**32 - 1),
)
def test_consistent_measurements_are_met(costs: list[float], seed: int) -> None:
    """Where the measured stages agree with some costs, the corrected ones lead to (nearly) the same sums."""
    chance = random.Random(seed)
    true = [c * chance.uniform(0.7, 1.4) for c in costs]
    cuts = sorted(chance.sample(range(1, len(costs)), min(2, len(costs) - 1)))
    measured = {}
    for cut in cuts:
        sums = [sum(true[:cut]), sum(true[cut:])]
        measured[(cut,)] = [tuple((s / 2, s / 2) for s in sums)] * 9
    found = fitted(costs, measured)
    assert all(value >= 0 for value in found)
    for cut in cuts:
        assert sum(found[:cut]) == pytest.approx(sum(true[:cut]), rel=0.1)
