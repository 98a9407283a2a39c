"""Correcting the cuts from what the workers really take."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from convoy.errors import ConvoyWarning, InternalError, OptionError
from convoy.events.event import Event
from convoy.graph.capture import capture
from convoy.graph.graph import Cost
from convoy.graph.profile import Profile
from convoy.strategies.base import Settings
from convoy.strategies.pipelined import Pipelined
from convoy.strategies.pipelined.clock import PipelineSchedule
from convoy.strategies.pipelined.meter import LoadMeter, StageLoad, better_cuts, by_worker, imbalance
from convoy.strategies.pipelined.step import PipelinedStep


@pytest.fixture(autouse=True)
def _no_stage_is_too_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks here take microseconds."""
    monkeypatch.setattr("convoy.strategies.pipelined.meter.SHORTEST", 0.0)


def action(kind: str, subject: str, start: float, end: float) -> Event:
    return Event("action", f"{kind}{subject}", start, end, data={"kind": kind, "subject": subject})


def test_the_meter_sums_by_stage_and_passes_events_on() -> None:
    seen: list[Event] = []
    meter = LoadMeter(2, seen.append)
    for t in range(4):
        meter(action("F", "1", t, t + 0.2))
        meter(action("B", "1", t + 0.2, t + 0.5))
        meter(action("U", "1", t + 0.5, t + 0.6))
        meter(action("F", "2", t, t + 0.1))
        meter(action("B", "2", t, t + 0.1))
        meter(action("U", "2", t, t))
    meter(Event("decision", "drain"))
    assert len(seen) == 25
    assert meter.batches == 4
    first, second = meter.loads()
    assert first.forward_seconds == pytest.approx(0.2) and first.backward_seconds == pytest.approx(0.4)
    assert second.seconds == pytest.approx(0.2)
    assert meter.step_seconds == pytest.approx(1.0)
    assert imbalance(by_worker(meter.loads(), lambda kind, stage: f"worker {stage}")) == pytest.approx(0.5)


def test_workers_of_a_split_placement_are_told_apart() -> None:
    loads = [StageLoad(1.0, 3.0), StageLoad(1.0, 1.0)]
    lane = PipelineSchedule((2, 0), ((1, 2),), (1,), "split").lane
    assert by_worker(loads, lane) == {"worker 1f": 1.0, "worker 1b": 3.0, "worker 2": 2.0}
    assert imbalance(by_worker(loads, lane)) == pytest.approx(0.5)


def test_time_between_drains_is_no_step() -> None:
    meter = LoadMeter(1, None)
    meter(action("U", "1", 0, 1))
    meter.pause()
    meter(action("U", "1", 99, 100))
    assert meter.step_seconds is None
    meter(action("U", "1", 101, 102))
    assert meter.step_seconds == pytest.approx(2.0)


def block() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh())


def test_a_slower_worker_gets_less() -> None:
    graph = capture(nn.Sequential(*[block() for _ in range(8)]), (torch.randn(4, 8),))
    alike = graph.with_costs({n.name: Cost(forward_seconds=1.0) for n in graph.nodes})
    profile = Profile(alike, saved=tuple(() for _ in graph.nodes), method="estimated")
    middle = len(graph.nodes) // 2
    planned = sum(profile.costs[:middle]), sum(profile.costs[middle:])
    twice = [StageLoad(2 * planned[0], 0.0), StageLoad(planned[1], 0.0)]
    found = better_cuts(profile, [middle], twice)
    assert found.cuts[0] < middle
    assert found.gain == pytest.approx(0.25, abs=0.1)  # 16 + 8 of work in two equal halves of 12 instead of 16


def bound(recut: str, events: list[Event], settings: Settings | None = None, **fields: object) -> PipelinedStep:
    torch.manual_seed(0)
    model = nn.Sequential(*[block() for _ in range(8)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    chosen = Pipelined(recut=recut, engine="inline", **fields)  # type: ignore[arg-type]

    return PipelinedStep(chosen, model, nn.functional.mse_loss, optimizer, settings or Settings(), events.append)


def feed(step: PipelinedStep, count: int) -> None:
    for t in range(count):
        x = torch.randn(4, 8, generator=torch.Generator().manual_seed(t))
        step(x, x)


def unbalance(step: PipelinedStep) -> None:
    """Pretend that worker 1 took three times as long."""
    meter = step._meter
    for kind in "FB":
        meter._spent[kind, "1"] = 3 * (meter._spent[kind, "1"] + meter._spent[kind, "2"])


def test_recut_moves_layers_and_is_a_decision() -> None:
    events: list[Event] = []
    step = bound("auto", events, stages=2)
    feed(step, 25)
    before = step._planned.cuts
    unbalance(step)
    rest = step.drain()
    assert [r.batch for r in rest] == [24] and torch.isfinite(rest[0].loss)
    assert step._planned.cuts[0] < before[0]
    decisions = [e for e in events if e.kind == "decision"]
    assert [d.name for d in decisions] == ["recut"]
    assert decisions[0].data["cuts"] == list(step.plan().cuts)  # type: ignore[union-attr]
    assert decisions[0].batch == 25
    feed(step, 5)  # goes on, at the version it had
    assert len(step.drain()) == 1
    assert step.state()["version"] == 30
    step.close()


def test_without_recut_it_is_said_once() -> None:
    events: list[Event] = []
    step = bound("off", events, stages=2)
    for _ in range(2):
        feed(step, 25)
        unbalance(step)
        step.drain()
    messages = [e.data["message"] for e in events if e.name == "imbalance"]
    assert len(messages) == 1
    assert messages[0].startswith("worker 1 takes ") and "--recut auto" in messages[0]
    step.close()


def test_after_a_recut_the_plan_has_a_forecast_and_its_notes() -> None:
    step = bound("auto", [], stages=2)
    feed(step, 25)
    before = step.plan()
    assert before is not None
    step._planned = replace(step._planned, plan=replace(before, notes=("why",)))
    unbalance(step)
    step.drain()
    plan = step.plan()
    assert plan is not None and plan.cuts != before.cuts
    assert plan.step_seconds and plan.sequential_seconds == before.sequential_seconds and "why" in plan.notes
    assert "fwd ms" in plan.table() and "predicted: " in plan.table()
    step.close()


def test_after_a_recut_by_hand_a_drain_measures_on() -> None:
    """A recut without times leaves out what the step should take; what plain training takes is known all the same."""
    step = bound("off", [], stages=2)
    feed(step, 3)
    step.drain()
    alone = step.plan().sequential_seconds  # type: ignore[union-attr]
    step.recut(["3"])
    feed(step, 25)
    unbalance(step)
    assert step.drain()
    assert step.plan().sequential_seconds == alone  # type: ignore[union-attr]
    step.close()


def test_a_warning_that_is_an_error_costs_no_results() -> None:
    step = bound("off", [], stages=2)
    step._sink = None
    feed(step, 25)
    unbalance(step)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ConvoyWarning):
            step.drain()
    assert [result.batch for result in step.drain()] == [24]
    step.close()


def test_no_recut_where_the_run_ends() -> None:
    events: list[Event] = []
    step = bound("auto", events, Settings(total_steps=25), stages=2)
    feed(step, 25)
    cuts = step.plan().cuts  # type: ignore[union-attr]
    unbalance(step)
    step.drain()
    assert step.plan().cuts == cuts and step.measured() is not None  # type: ignore[union-attr]
    assert not [e for e in events if e.name == "recut"]
    step.close()


def test_a_recut_keeps_max_memory() -> None:
    events: list[Event] = []
    step = bound("auto", events, stages=2)
    feed(step, 25)
    plan = step.plan()
    assert plan is not None
    # What this plan holds, and no more: planned again under a limit, the measured cut could be another.
    limit = (plan.activation_bytes or 0) + plan.weights_held_bytes
    step._settings = replace(step._settings, max_memory=limit)
    cuts = step.plan().cuts  # type: ignore[union-attr]
    meter = step._meter
    for kind in "FB":  # worker 2 is slow: more layers before the cut, which are held for longer
        meter._spent[kind, "2"] = 3 * (meter._spent[kind, "1"] + meter._spent[kind, "2"])
    step.drain()
    assert step.plan().cuts == cuts  # type: ignore[union-attr]
    assert [e.name for e in events if e.name in ("imbalance", "recut")] == ["imbalance"]
    step.close()


def test_a_resumed_run_is_cut_anew_too() -> None:
    events: list[Event] = []
    first = bound("auto", [], stages=2)
    feed(first, 3)
    first.drain()
    state = first.state()
    first.close()
    step = bound("auto", events, stages=2)
    step.restore(state)
    feed(step, 25)
    unbalance(step)
    step.drain()
    assert [e.name for e in events if e.kind == "decision"] == ["recut"]
    step.close()


@pytest.mark.parametrize(
    ("fields", "what"),
    [({"cuts": ["4"]}, "cuts"), ({"ppv": [2]}, "ppv"), ({"stages": 2, "placement": "split"}, "placement 'split'")],
)
def test_recut_moves_only_what_convoy_chose(fields: dict[str, Any], what: str) -> None:
    with pytest.raises(OptionError, match=f"{what} is given"):
        Pipelined(recut="auto", **fields)


def test_given_cuts_stay() -> None:
    events: list[Event] = []
    step = bound("off", events, cuts=["4"])
    feed(step, 25)
    unbalance(step)
    step.drain()
    assert step.plan().cuts == ("4.0",)  # type: ignore[union-attr]
    assert not [e for e in events if e.kind == "decision"]
    step.close()


def test_cutting_anew_by_hand_changes_only_the_staleness() -> None:
    """Recut at a drain equals a pipeline that is bound anew with the other cut."""

    def run(by_hand: bool) -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(*[block() for _ in range(4)])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        step = Pipelined(cuts=["1"]).bind(model, nn.functional.mse_loss, optimizer)
        feed(step, 6)
        step.drain()
        if by_hand:
            step.recut(["3"])
        else:
            step.close()
            step = Pipelined(cuts=["3"]).bind(model, nn.functional.mse_loss, optimizer)
        feed(step, 6)
        step.drain()
        step.close()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(run(True), run(False))


def test_an_imbalance_of_microseconds_is_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convoy.strategies.pipelined.meter.SHORTEST", 1e9)
    events: list[Event] = []
    step = bound("auto", events, stages=2)
    feed(step, 25)
    cuts = step.plan().cuts  # type: ignore[union-attr]
    unbalance(step)
    step.drain()
    assert step.plan().cuts == cuts  # type: ignore[union-attr]
    assert not [e for e in events if e.name in ("imbalance", "recut")]
    step.close()


def test_what_was_measured_stays_after_the_drain() -> None:
    step = bound("off", [], stages=2)
    feed(step, 25)
    step.drain()
    plan = step.measured()
    assert plan is not None and plan.step_seconds is not None
    text = step.plan().beside(plan)  # type: ignore[union-attr]
    assert "fwd was" in text and "measured: " in text and "against the forecast" in text
    step.close()


def test_measured_stands_beside_the_forecast() -> None:
    step = bound("off", [], stages=2)
    assert step.measured() is None
    feed(step, 10)
    began = time.perf_counter()
    plan = step.measured()
    assert time.perf_counter() - began < 1.0
    assert plan is not None and plan.step_seconds is not None and plan.step_seconds > 0
    assert all(stage.seconds for stage in plan.stages)
    assert plan.cuts == step.plan().cuts  # type: ignore[union-attr]
    step.close()


def test_recut_in_flight_is_refused() -> None:
    step = bound("off", [], cuts=["4"])
    feed(step, 3)
    with pytest.raises(InternalError, match="after a drain"):
        step.recut(["3"])
    step.close()


def test_recut_has_two_values() -> None:
    with pytest.raises(OptionError, match="recut is 'always'"):
        Pipelined(recut="always")


def test_before_its_last_drain_a_pipeline_is_told_to_stay() -> None:
    """What it is told then is not to ask for what was given."""
    events: list[Event] = []
    step = bound("auto", events, stages=2)
    feed(step, 25)
    cuts = step.plan().cuts  # type: ignore[union-attr]
    unbalance(step)
    step.stay()
    step.drain()
    assert step.plan().cuts == cuts and step.measured() is not None  # type: ignore[union-attr]
    (warning,) = [e for e in events if e.name in ("imbalance", "recut")]
    assert warning.name == "imbalance" and "--recut" not in warning.data["message"]
    step.close()
