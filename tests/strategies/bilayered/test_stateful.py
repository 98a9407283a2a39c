"""The parameter server under any sequence of messages that Hypothesis finds, sensible or not."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from convoy.strategies.bilayered.checks import check
from convoy.strategies.bilayered.estimate import limit_seconds
from convoy.strategies.bilayered.machine import step
from convoy.strategies.bilayered.messages import Begin, Dead, Goal, Grant, Join, Merge, Message, Push, Tick
from convoy.strategies.bilayered.state import ALLOCATIONS, UPDATES, Rules, State

NODES = st.integers(0, 3)


class AnyMessages(RuleBasedStateMachine):
    """Time goes on with every message; pushes take any time, come twice, from the dead and out of order."""

    @initialize(
        samples=st.integers(8, 60),
        update=st.sampled_from(UPDATES),
        allocation=st.sampled_from(ALLOCATIONS),
        batches=st.integers(1, 5),
        size=st.one_of(st.none(), st.integers(1, 3)),
        nodes=st.integers(1, 3),
    )
    def begin(self, samples: int, update: str, allocation: str, batches: int, size: int | None, nodes: int) -> None:
        rules = Rules(
            samples=samples,
            batch_size=3,
            update=update,
            allocation=allocation,
            batches=batches,
            round=size,
            grace_seconds=0.0,
        )
        self.state, self.now = State(rules), 0.0
        self.merged: set[tuple[int, int, int]] = set()
        for message in (Goal(3), *(Join(j, 0, 1.0 + j) for j in range(nodes)), Begin()):
            self.hear(message)

    def hear(self, message: Message) -> None:
        before = self.state
        self.state, effects = step(before, message)
        again, _ = step(before, message)
        assert again == self.state  # a pure function
        for effect in effects:
            if isinstance(effect, Merge):
                assert 0 <= sum(part.weight for part in effect.parts) <= 2  # the published rule may weigh a push with 0
                for part in effect.parts:
                    assert (part.node, part.incarnation, part.sequence) not in self.merged
                    self.merged.add((part.node, part.incarnation, part.sequence))
            if isinstance(effect, Grant):
                assert 0 < effect.samples <= sum(b - a for a, b in effect.ranges)
        assert self.state.version - before.version == sum(isinstance(e, Merge) for e in effects)

    def later(self, seconds: float) -> float:
        self.now += seconds
        return self.now

    @rule(node=NODES, seconds=st.floats(0.01, 5), quality=st.one_of(st.none(), st.floats(0, 1)), finite=st.booleans())
    def push(self, node: int, seconds: float, quality: float | None, finite: bool) -> None:
        lease = self.state.nodes[node].lease if node < len(self.state.nodes) else None
        if lease is not None:
            known = self.state.nodes[node]
            at = self.later(seconds)
            self.hear(Push(node, known.incarnation, lease.sequence, seconds, quality, finite, at))

    @rule(node=NODES, incarnation=st.integers(0, 4), sequence=st.integers(0, 6))
    def echo(self, node: int, incarnation: int, sequence: int) -> None:
        self.hear(Push(node, incarnation, sequence, at=self.later(0.01)))

    @rule(node=NODES, incarnation=st.integers(0, 4), speed=st.floats(0.1, 10))
    def join(self, node: int, incarnation: int, speed: float) -> None:
        self.hear(Join(node, incarnation, speed, self.later(0.01)))

    @rule(node=NODES, incarnation=st.integers(0, 4))
    def die(self, node: int, incarnation: int) -> None:
        self.hear(Dead(node, incarnation, self.later(0.01)))

    @rule(seconds=st.floats(0, 50))
    def tick(self, seconds: float) -> None:
        now = self.later(seconds)
        late = {
            j
            for j, node in enumerate(self.state.nodes)
            if node.lease is not None and now - node.lease.at > (limit_seconds(self.state, j) or float("inf"))
        }
        self.hear(Tick(now))
        assert not any(self.state.nodes[j].live for j in late)

    @precondition(lambda self: self.state.goal < 5)
    @rule()
    def further(self) -> None:
        self.hear(Goal(self.state.goal + 1, self.later(0.01)))

    @invariant()
    def the_ledger_adds_up(self) -> None:
        check(self.state)
        assert State.from_dict(self.state.to_dict()) == self.state

    @invariant()
    def somebody_works_while_samples_are_owed(self) -> None:
        live = [node for node in self.state.nodes if node.live]
        if self.state.begun and live and not self.state.done:
            assert any(node.lease is not None for node in live)

    def teardown(self) -> None:
        """Whatever happened: from here on everybody works, and the run ends."""
        if not any(node.live for node in self.state.nodes):
            newest = max(node.incarnation for node in self.state.nodes)
            self.hear(Join(0, newest + 1, at=self.later(1)))
        for _ in range(4000):
            if self.state.done:
                break
            for j, node in enumerate(self.state.nodes):
                if node.lease is not None:
                    self.hear(Push(j, node.incarnation, node.lease.sequence, 1.0, 0.5, True, self.later(0.1)))
                    break
        assert self.state.done
        assert self.state.accepted == self.state.total
        assert not self.state.jobs


TestAnyMessages = AnyMessages.TestCase
TestAnyMessages.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
