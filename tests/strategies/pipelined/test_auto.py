"""``stages="auto"``: what is chosen from given measurements, and that a choice is recorded, resumed and replayed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn

from convoy.errors import OptionError
from convoy.events.event import Event
from convoy.graph.capture import capture
from convoy.graph.graph import Cost, Graph
from convoy.graph.profile import Profile
from convoy.strategies.base import Settings
from convoy.strategies.oracle import oracle
from convoy.strategies.pipelined import Pipelined
from convoy.strategies.pipelined.auto import choose, possibilities
from convoy.strategies.pipelined.clock import delays, staleness_in_updates
from convoy.strategies.pipelined.plan import steady_step


def net(blocks: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(blocks)])


@dataclass
class Measured:
    """A bench whose numbers are given: every node takes 10 ms and keeps 1000 bytes; ``all_threads`` is plain training
    on all cores, ``overhead`` what micro-batches cost on top, as a share for each doubling."""

    graph: Graph
    settings: Settings
    all_threads: float
    overhead: float = 0.0
    samples: int = 32
    optimizer: torch.optim.Optimizer | None = None

    @property
    def _alone(self) -> float:
        return 0.01 * len(self.graph.nodes)

    def profile(self, threads: int, parts: int = 1) -> Profile:
        saved = tuple(((i, 1000),) for i, _ in enumerate(self.graph.nodes))
        return Profile(self.graph, saved, "measured")

    def costs(self, threads: int, parts: int = 1) -> list[float]:
        return [0.01] * len(self.graph.nodes)

    def whole(self, threads: int, parts: int = 1) -> float:
        if threads > 1:
            return self.all_threads
        return self._alone * (1.0 + self.overhead) ** (parts.bit_length() - 1)


def bench(all_threads: float = 1.0, overhead: float = 0.0, **fields: Any) -> Any:
    graph = capture(net(), (torch.randn(4, 8),))
    graph = graph.with_costs({n.name: Cost(forward_seconds=0.01) for n in graph.nodes})
    return Measured(graph, Settings(**fields), all_threads, overhead)


def test_the_fastest_with_the_least_staleness() -> None:
    chosen, reason = choose(Pipelined(stages="auto"), bench(), 2)
    assert (chosen.stages, chosen.clock, chosen.accumulate) == (2, "1f1b", 8)
    assert "2 stages, clock 1f1b, 8 micro-batches" in reason


def test_the_recommended_correction_comes_with_stale_weights() -> None:
    chosen, reason = choose(Pipelined(stages="auto"), bench(), 2)
    assert chosen.correction == "predict:linear+spike" and "correction predict:linear+spike" in reason
    named, reason = choose(Pipelined(stages="auto", correction="none"), bench(), 2)
    assert named.correction == "none" and "correction" not in reason
    alone, _ = choose(Pipelined(stages="auto"), bench(all_threads=1e-6), 2)
    assert alone.stages == 1 and alone.correction is None


def test_no_correction_of_momentum_for_an_optimizer_without() -> None:
    made = bench()
    made.optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))])
    chosen, _ = choose(Pipelined(stages="auto"), made, 2)
    assert chosen.stages == 2 and chosen.correction is None


def test_micro_batches_that_cost_too_much_are_not_taken() -> None:
    chosen, _ = choose(Pipelined(stages="auto"), bench(overhead=0.1), 2)
    assert chosen.accumulate == 1 and chosen.stages == 2


def test_no_pipeline_where_plain_training_is_as_fast() -> None:
    fast = min(p.seconds for p in possibilities(Pipelined(stages="auto"), bench(), 2) if p.stages == 2)
    chosen, reason = choose(Pipelined(stages="auto"), bench(all_threads=fast * 1.02), 2)
    assert chosen.stages == 1 and "no pipeline" in reason


def test_staleness_is_bounded() -> None:
    for bound in (0.0, 0.2, 0.5, 1.0, 2.0):
        asked = Pipelined(stages="auto", max_staleness=bound, accumulate=4)
        chosen, reason = choose(asked, bench(overhead=-0.1), 4)
        stale = staleness_in_updates(delays(int(chosen.stages or 0), chosen.clock), chosen.accumulate)
        assert max(stale) <= bound
        assert chosen.accumulate == 4  # what is given stays
        assert (chosen.stages == 1) == (bound < 0.25)  # 1f1b with two stages and four parts is a quarter stale
        assert ("too stale" in reason) == (bound < 1.5)  # registers with four stages


def test_memory_is_bounded() -> None:
    made = bench(max_memory=20_000)
    chosen, _ = choose(Pipelined(stages="auto"), made, 2)
    fitting = [p for p in possibilities(Pipelined(stages="auto"), made, 2) if p.activation_bytes + 6912 <= 20_000]
    assert any((p.stages, p.clock, p.accumulate) == (chosen.stages, chosen.clock, chosen.accumulate) for p in fitting)
    with pytest.raises(OptionError, match="the least that any possibility holds"):
        choose(Pipelined(stages="auto"), bench(max_memory=100), 2)


def test_jitter_costs_the_clock_without_slack_more() -> None:
    times = [(0.01, 0.02)] * 4
    registers, _ = steady_step((6, 4, 2, 0), times, jitter=0.1)
    tight, _ = steady_step((3, 2, 1, 0), times, jitter=0.1)
    quiet, _ = steady_step((3, 2, 1, 0), times)
    assert quiet < registers < tight < 1.2 * quiet


def run(strategy: Pipelined, count: int, events: list[Event], state: Any = None) -> tuple[Any, dict[str, Any]]:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    with strategy.bind(model, nn.functional.mse_loss, optimizer, settings=Settings(threads=2), sink=events.append) as s:
        if state is not None:
            s.restore(state)
        for x in batches(count):
            s(x, x)
        s.drain()
        kept = dict(s.state())
        plan = s.plan()
    return (plan, [p.detach().clone() for p in model.parameters()]), kept


def batches(count: int) -> list[torch.Tensor]:
    return [torch.randn(8, 8, generator=torch.Generator().manual_seed(t)) for t in range(count)]


@pytest.fixture
def chosen_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The forecast is not what is tested here."""

    def choice(strategy: Pipelined, made: Any, threads: int) -> tuple[Pipelined, str]:
        chosen = replace(strategy, stages=3, clock="1f1b", accumulate=2, correction="predict+spike")
        return chosen, "chosen by the test"

    monkeypatch.setattr("convoy.strategies.pipelined.planner.choose", choice)
    monkeypatch.setattr("convoy.strategies.pipelined.balance_bench.TRIAL_SECONDS", 0.1)
    monkeypatch.setattr("convoy.strategies.pipelined.rehearsal.LONGEST_SECONDS", 0.0)


@pytest.mark.usefixtures("chosen_is")
def test_a_choice_is_a_decision_and_the_oracle_repeats_it() -> None:
    events: list[Event] = []
    asked = Pipelined(stages="auto", engine="threads")
    (plan, weights), _ = run(asked, 6, events)
    assert plan.clock == "1f1b" and plan.accumulate == 2 and len(plan.stages) == 3
    assert plan.correction == "predict:linear+spike" and "correction predict:linear+spike" in plan.table()
    assert "chosen by the test" in plan.notes
    (decision,) = [e for e in events if e.kind == "decision"]
    assert decision.name == "auto" and decision.data["cause"] == "timing"
    assert decision.data["cuts"] == list(plan.cuts) and decision.data["stages"] == 3
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    pairs = [(x, x) for x in batches(6)]
    oracle(model, nn.functional.mse_loss, optimizer, asked, pairs, settings=Settings(threads=2), events=events)
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))


@pytest.mark.usefixtures("chosen_is")
def test_a_resumed_run_keeps_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    (plan, _), state = run(Pipelined(stages="auto", engine="inline"), 4, [])

    def never(*arguments: Any) -> Any:
        raise AssertionError("chosen again")

    monkeypatch.setattr("convoy.strategies.pipelined.planner.choose", never)
    (again, _), _ = run(Pipelined(stages="auto", engine="inline"), 2, [], state)
    kept = (again.cuts, again.clock, again.accumulate, again.correction)
    assert kept == (plan.cuts, plan.clock, plan.accumulate, "predict:linear+spike")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"stages": "many"}, "stages is 'many'"),
        ({"stages": "auto", "placement": "split"}, "chooses among colocated"),
        ({"max_staleness": -1.0}, "max_staleness is -1"),
        ({"stages": "auto", "ppv": [1]}, "each says where to cut"),
    ],
)
def test_refusals(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        Pipelined(**fields)
