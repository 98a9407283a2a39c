"""The versions that workers observed, against the closed formula."""

from __future__ import annotations

from functools import partial
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from convoy.errors import InternalError
from convoy.events.event import Event
from convoy.strategies.base import Settings
from convoy.strategies.pipelined import Pipelined


def delays(clock: str, slack: int, k: int) -> list[int]:
    return [2 * (k - i) if clock == "registers" else min(k - i + slack, 2 * (k - i)) for i in range(k + 1)]


def check(events: list[Event], sizes: list[int], m: int, d: list[int], drains: set[int], first: int = 0) -> None:
    """B(u) reads batch(u); F(u) reads max(v, batch(max(0, u - d))), v the version at the last drain; an update writes
    the next version. Batches are counted from ``first``, where a resumed run began."""
    units = [(first + t, index) for t, n in enumerate(sizes) for index in range(min(m, n))]
    seen = [e for e in events if e.kind == "action" and e.data["kind"] in "FBU"]
    assert len(seen) == len(d) * (2 * len(units) + len(sizes))
    for event in seen:
        stage, batch = int(event.data["subject"]), event.batch
        name = f"W{stage}"
        read = event.data["reads"][name]
        if event.data["kind"] == "U":
            assert (read, event.data["writes"]) == (batch, {name: batch + 1})
            continue
        assert event.data["writes"] == {}
        u = units.index((batch, event.data["part"]))
        if event.data["kind"] == "B":
            assert read == batch
        else:
            drained = max((t for t in drains if t <= batch), default=first)
            assert read == max(drained, units[max(0, u - d[stage - 1])][0])


@settings(max_examples=20)
@given(data=st.data())
def test_versions_read_and_written(runs: ModuleType, data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.sampled_from([4, 4, 2, 3, 1]), min_size=2, max_size=8))
    clock, slack = data.draw(st.sampled_from([("registers", 0), ("1f1b", 0), ("1f1b", 1)]))
    m = data.draw(st.integers(1, 4))
    drains = data.draw(st.sets(st.integers(1, len(sizes) - 1), max_size=2))
    cut_at = data.draw(st.lists(st.floats(0, 1, exclude_max=True), max_size=4))
    build = partial(runs.Residual, 2, 0.0, False)
    run = runs.train(build, sizes, cut_at=cut_at, clock=clock, slack=slack, accumulate=m, drains=drains, jitter_seed=5)
    check(run.events, sizes, m, delays(clock, slack, len(run.delays) - 1), drains)


def test_a_resumed_pipeline_counts_on(runs: ModuleType) -> None:
    """Two runs of four batches, the second restored, observe and compute what one run with a drain does."""
    sizes = [4, 4, 3, 4, 4, 2, 4, 4]
    data = runs.batches(sizes)
    strategy = Pipelined(cuts=["convs.0", "head"], accumulate=2)
    fixed = Settings(channels_last=False)

    def model() -> torch.nn.Module:
        torch.manual_seed(0)
        return runs.Residual(4, 0.3, True)

    net = model()
    optimizer = runs.OPTIMIZERS["adam"](net.parameters())
    with strategy.bind(net, runs.loss, optimizer, settings=fixed) as step:
        for t, (x, y) in enumerate(data):
            if t == 4:
                step.drain()
            step(x, y)

    part = model()
    first = runs.OPTIMIZERS["adam"](part.parameters())
    with strategy.bind(part, runs.loss, first, settings=fixed) as step:
        for x, y in data[:4]:
            step(x, y)
        with pytest.raises(InternalError, match="after a drain"):
            step.state()
        step.drain()
        state = step.state()
    other = runs.Residual(4, 0.3, True)
    other.load_state_dict(part.state_dict())
    second = runs.OPTIMIZERS["adam"](other.parameters())
    second.load_state_dict(first.state_dict())
    events: list[Event] = []
    with strategy.bind(other, runs.loss, second, settings=fixed, sink=events.append) as step:
        step.restore(state)
        assert step.state() == state
        results = [step(x, y) for x, y in data[4:]]
        with pytest.raises(InternalError, match="before its first batch"):
            step.restore(state)
        results += step.drain()
    assert [r.batch for r in results if r is not None] == [4, 5, 6, 7]
    check(events, sizes[4:], 2, [4, 2, 0], set(), first=4)
    runs.same(dict(other.state_dict()), dict(net.state_dict()), "weights")
    runs.same(second.state_dict(), optimizer.state_dict(), "optimizer")
