"""``stages="auto"``: what is chosen from given measurements, and that a choice is recorded, resumed and replayed."""

from __future__ import annotations

from collections.abc import Iterator
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
from convoy.strategies.pipelined.auto import choices, possibilities, without_pipeline
from convoy.strategies.pipelined.clock import delays, staleness_in_updates
from convoy.strategies.pipelined.plan import steady_step
from convoy.strategies.pipelined.planned import Planned
from convoy.strategies.pipelined.planner import plan_pipeline


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
    def weights_bytes(self) -> int:
        return 3 * sum(self.graph.parameter_bytes.values())

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
    chosen, reason = next(choices(Pipelined(stages="auto"), bench(), 2))
    assert (chosen.stages, chosen.clock, chosen.accumulate) == (2, "1f1b", 8)
    assert "2 stages, clock 1f1b, 8 micro-batches" in reason


def test_the_recommended_correction_comes_with_stale_weights() -> None:
    chosen, reason = next(choices(Pipelined(stages="auto"), bench(), 2))
    assert chosen.correction == "predict:linear+spike" and "correction predict:linear+spike" in reason
    named, reason = next(choices(Pipelined(stages="auto", correction="none"), bench(), 2))
    assert named.correction == "none" and "correction" not in reason
    alone, _ = next(choices(Pipelined(stages="auto"), bench(all_threads=1e-6), 2))
    assert alone.stages == 1 and alone.correction is None and alone.accumulate == 1


@pytest.mark.parametrize("clock", ["registers", "1f1b"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_is_given_stays(clock: str, accumulate: int) -> None:
    """The published clock and whole mini-batches too, which are what an option that is not given means elsewhere."""
    asked = Pipelined(stages="auto", clock=clock, accumulate=accumulate)
    for chosen, _ in choices(asked, bench(), 4):
        assert (chosen.clock, chosen.accumulate) == (clock, accumulate)
    both = {(chosen.clock, chosen.accumulate) for chosen, _ in choices(Pipelined(stages="auto"), bench(), 4)}
    assert {("registers", 1), ("1f1b", 1), ("1f1b", 8)} <= both


def test_no_correction_of_momentum_for_an_optimizer_without() -> None:
    made = bench()
    made.optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))])
    chosen, _ = next(choices(Pipelined(stages="auto"), made, 2))
    assert chosen.stages == 2 and chosen.correction is None


def test_micro_batches_that_cost_too_much_are_not_taken() -> None:
    chosen, _ = next(choices(Pipelined(stages="auto"), bench(overhead=0.1), 2))
    assert chosen.accumulate == 1 and chosen.stages == 2


def test_no_pipeline_where_plain_training_is_as_fast() -> None:
    fast = min(p.seconds for p in possibilities(Pipelined(stages="auto"), bench(), 2) if p.stages == 2)
    chosen, reason = next(choices(Pipelined(stages="auto"), bench(all_threads=fast * 1.02), 2))
    assert chosen.stages == 1 and "no pipeline" in reason


def test_staleness_is_bounded() -> None:
    for bound in (0.0, 0.2, 0.5, 1.0, 2.0):
        asked = Pipelined(stages="auto", max_staleness=bound, accumulate=4)
        chosen, reason = next(choices(asked, bench(overhead=-0.1), 4))
        stale = staleness_in_updates(delays(int(chosen.stages or 0), chosen.clock), chosen.accumulate)
        assert max(stale) <= bound
        assert chosen.accumulate == 4  # what is given stays
        assert (chosen.stages == 1) == (bound < 0.25)  # 1f1b with two stages and four parts is a quarter stale
        assert ("too stale" in reason) == (bound < 1.5)  # registers with four stages


def test_slack_leaves_out_pipelines_with_fewer_cuts() -> None:
    asked = Pipelined(stages="auto", clock="1f1b", slack=2, accumulate=1)
    made = list(possibilities(asked, bench(), 4))
    assert {p.stages for p in made} == {1, 3, 4}
    chosen, _ = next(choices(asked, bench(), 4))
    assert int(chosen.stages or 0) >= 3 and chosen.slack == 2


def test_slack_that_no_pipeline_has_cuts_for_is_refused() -> None:
    with pytest.raises(OptionError, match="slack is 2, and no pipeline that can be chosen here has so many cuts"):
        next(choices(Pipelined(stages="auto", clock="1f1b", slack=2), bench(), 2))


def test_no_pipeline_has_no_slack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the choice is resumed and replayed."""
    asked = Pipelined(stages="auto", clock="1f1b", slack=1, engine="inline")
    chosen, _ = next(choices(asked, bench(all_threads=1e-6), 2))
    assert (chosen.stages, chosen.slack) == (1, 0)
    monkeypatch.setattr("convoy.strategies.pipelined.planner.choices", lambda *_: iter([(chosen, "")]))
    events: list[Event] = []
    (plan, weights), state = run(asked, 4, events)
    assert plan.cuts == ()
    run(asked, 2, [], state)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    pairs = [(x, x) for x in batches(4)]
    oracle(model, nn.functional.mse_loss, optimizer, asked, pairs, settings=Settings(threads=2), events=events)
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))


def test_memory_is_bounded() -> None:
    made = bench(max_memory=20_000)
    chosen, _ = next(choices(Pipelined(stages="auto"), made, 2))
    fitting = [p for p in possibilities(Pipelined(stages="auto"), made, 2) if p.activation_bytes + 6912 <= 20_000]
    assert any((p.stages, p.clock, p.accumulate) == (chosen.stages, chosen.clock, chosen.accumulate) for p in fitting)
    with pytest.raises(OptionError, match="the least that any possibility holds"):
        next(choices(Pipelined(stages="auto"), bench(max_memory=100), 2))


def test_what_fits_is_too_stale() -> None:
    asked = Pipelined(stages="auto", max_staleness=0.0)
    with pytest.raises(OptionError, match=r"no more than max_memory, 20\.0 kB, reads weights at least 0\.125 updates"):
        next(choices(asked, bench(max_memory=20_000), 2))


def planned(asked: Pipelined, limit: int | None = None) -> Planned:
    model, x = net(4), torch.randn(64, 8)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    settings = Settings(threads=2, max_memory=limit, forecast=True)
    return plan_pipeline(asked, model, nn.functional.mse_loss, x, x, settings, optimizer)


@pytest.fixture
def in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """First two stages of the published clock, then with four micro-batches; short measurements."""

    def both(strategy: Pipelined, *_: Any) -> Iterator[tuple[Pipelined, str]]:
        cut = replace(strategy, stages=None, cuts=("2",), clock="registers", accumulate=1)  # the same in every run
        yield cut, "the first"
        yield replace(cut, clock="1f1b", accumulate=4, correction="predict"), "the second"

    monkeypatch.setattr("convoy.strategies.pipelined.planner.choices", both)
    for name, value in (("PROFILE", 0.05), ("TRIAL", 0.05), ("WHOLE", 0.02)):
        monkeypatch.setattr(f"convoy.strategies.pipelined.balance_bench.{name}_SECONDS", value)


@pytest.mark.usefixtures("in_turn")
def test_the_next_is_taken_where_a_plan_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convoy.strategies.pipelined.rehearsal.LONGEST_SECONDS", 0.0)
    free = planned(Pipelined(stages="auto")).plan
    assert free.clock == "registers" and "the first" in free.notes
    held = free.weights_held_bytes + (free.activation_bytes or 0)
    bounded = planned(Pipelined(stages="auto"), held - 1).plan
    assert bounded.clock == "1f1b" and "the second" in bounded.notes
    with pytest.raises(OptionError, match="this pipeline holds"):
        planned(Pipelined(stages="auto"), bounded.weights_held_bytes)


@pytest.mark.usefixtures("in_turn")
def test_no_pipeline_where_none_that_was_tried_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convoy.strategies.pipelined.rehearsal.LONGEST_SECONDS", 0.0)
    made = planned(Pipelined(stages="auto", max_staleness=0.0))
    assert made.plan.cuts == () and "do not keep the bounds" in made.plan.notes[-1]


def test_a_correction_that_is_not_for_micro_batches_is_no_question_while_they_are_open() -> None:
    optimizer = torch.optim.SGD(net().parameters(), 0.1, momentum=0.9)
    asked = Pipelined(stages="auto", correction="dc-asgd")
    asked.bind(net(), nn.functional.mse_loss, optimizer).close()


@pytest.mark.usefixtures("in_turn")
@pytest.mark.parametrize("given", [{}, {"accumulate": 2}])
def test_no_pipeline_after_a_rehearsal_is_plain_training(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convoy.strategies.pipelined.planner.rehearse", lambda *_: 100.0)
    made = planned(Pipelined(stages="auto", correction="none", **given))
    assert made.plan.cuts == () and "chosen was no pipeline" in made.plan.notes[-1]
    assert made.strategy.accumulate == made.plan.accumulate == given.get("accumulate", 1)


def test_no_pipeline_keeps_max_memory_too() -> None:
    whole = next(possibilities(Pipelined(stages="auto"), bench(), 2))
    held = whole.activation_bytes + bench().weights_bytes
    assert without_pipeline(Pipelined(stages="auto"), bench(max_memory=held), 2) == Pipelined(stages=1)
    assert without_pipeline(Pipelined(stages="auto"), bench(max_memory=held - 1), 2) is None
    halves = without_pipeline(Pipelined(stages="auto", accumulate=2), bench(max_memory=held - 1), 2)
    assert halves == Pipelined(stages=1, accumulate=2)


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

    def choice(strategy: Pipelined, made: Any, threads: int) -> Iterator[tuple[Pipelined, str]]:
        chosen = replace(strategy, stages=3, clock="1f1b", accumulate=2, correction="predict+spike")
        yield chosen, "chosen by the test"

    monkeypatch.setattr("convoy.strategies.pipelined.planner.choices", choice)
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

    monkeypatch.setattr("convoy.strategies.pipelined.planner.choices", never)
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
