"""The oracle: the same strategy in one thread, with the decisions that a run recorded.

The same decisions give the same numbers, whatever the timing. Decisions of the user or of timing (drains, new cuts, a
switch at an epoch) are taken from the record; those made from data (a switch at a stall) are recomputed from it and
compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from torch import nn
from torch.optim import Optimizer

from convoy.errors import InternalError, OptionError
from convoy.events.event import Event, Sink
from convoy.events.plain import plain
from convoy.schedule.decision import Decision
from convoy.strategies.base import Loss, Settings, Step, StepResult, Strategy
from convoy.strategies.batch import split_batch
from convoy.strategies.bilayered import BiLayered
from convoy.strategies.bilayered.replay import replay
from convoy.strategies.concurrent import Concurrent
from convoy.strategies.hybrid import Hybrid, HybridStep
from convoy.strategies.pipelined import Pipelined
from convoy.strategies.pipelined.step import PipelinedStep
from convoy.strategies.record import Record, Recorded, as_event
from convoy.strategies.sequential import Sequential
from convoy.strategies.speculative import Speculative
from convoy.strategies.switching import Stall, SwitchRule


@dataclass(frozen=True, slots=True)
class OracleRun:
    """``losses``: one a mini-batch. ``decisions``: what was carried out, in order. ``plan``: the strategy's.
    ``first_difference``: the first mini-batch (of bilayered: version) whose recorded loss is another one; None where
    all agree or none was recorded."""

    losses: tuple[float, ...]
    decisions: tuple[Decision, ...]
    plan: Any
    first_difference: int | None


def inline(strategy: Strategy) -> Strategy:
    """The same strategy in one thread. Raises OptionError for one that has no oracle."""
    if isinstance(strategy, Pipelined):
        return replace(strategy, engine="inline", recut="off")
    if isinstance(strategy, (Speculative, Concurrent)):
        return replace(strategy, engine="inline")
    if isinstance(strategy, Hybrid):
        return replace(strategy, first=inline(strategy.first), then=inline(strategy.then))
    if isinstance(strategy, Sequential):
        return strategy
    if isinstance(strategy, BiLayered):
        return replace(strategy, engine="inline", address=None, insecure=False)
    raise OptionError(
        f"strategy {strategy.name} has no oracle",
        hint="sequential, pipelined, speculative, concurrent, bilayered and hybrid have one",
    )


def oracle(
    model: nn.Module,
    loss: Loss,
    optimizer: Optimizer,
    strategy: Strategy,
    batches: Iterable[Any],
    *,
    settings: Settings | None = None,
    events: Iterable[Recorded] | None = None,
    sink: Sink | None = None,
    scheduler: Any = None,
    per_step: bool = False,
) -> OracleRun:
    """Train ``model`` on ``batches`` under ``strategy`` in one thread.

    ``events`` are those of a run (or some decisions, or the rows of its ``events.jsonl``): the oracle drains,
    switches and cuts as the run did. From equal objects, settings and batches it ends with the same bits.
    ``batches`` yields what a loader yields; a generator may step a scheduler after each batch that it yields.

    ``BiLayered`` orders the samples itself: ``batches`` is the loader of its run then, of which ``events`` are needed,
    and a ``scheduler`` is stepped as the Trainer does, after each epoch or ``per_step``.

    Raises OptionError where strategy or settings cannot be those of the record, InternalError where a decision made
    from data comes out otherwise.
    """
    if isinstance(strategy, BiLayered):
        return _arrivals(
            model, loss, optimizer, strategy, batches, settings, events, sink, scheduler=scheduler, per_step=per_step
        )
    if scheduler is not None:
        raise OptionError(
            f"strategy {strategy.name} is handed batches one by one, and a scheduler is given",
            hint="let batches be a generator that steps the scheduler after each batch that it yields",
        )
    record = Record() if events is None else Record.of(events)
    repeated = _repeating(strategy, record, recorded=events is not None)
    decisions: list[Decision] = []

    def watch(event: Event) -> None:
        if event.kind == "decision":
            decisions.append(Decision(event.name, event.batch, event.data.get("cause", "user"), event.data))
            _compare_computed(event, record)
        elif event.kind == "plan" and event.name == Pipelined.name:
            made = {d.name for d in decisions}
            if "recut" not in made:
                _compare(event.data, record.plans["switch" in made][:1])
        if sink is not None:
            sink(event)

    losses: list[float] = []
    if not model.training:
        model.train()
    with repeated.bind(model, loss, optimizer, settings=settings, sink=watch) as step:
        for number, batch in enumerate(batches):
            if number in record.drains:
                decisions.append(Decision("drain", number, "user"))
                losses += _losses(step.drain())
            if number in record.recuts and (record.switch is None or number != record.switch.batch):
                # Where the switch follows at once, the pipeline that was cut anew is gone.
                cuts = record.recuts[number]
                decisions.append(Decision("recut", number, "timing", {"cuts": list(cuts)}))
                _pipeline(step).recut(cuts)
            result = step(*split_batch(batch))
            losses += _losses([] if result is None else [result])
        losses += _losses(step.drain())
        plan = step.plan()
    differing = (n for n, value in enumerate(losses) if n in record.losses and record.losses[n] != value)
    return OracleRun(tuple(losses), tuple(decisions), plan, next(differing, None))


def _arrivals(
    model: nn.Module,
    loss: Loss,
    optimizer: Optimizer,
    strategy: BiLayered,
    data: Any,
    settings: Settings | None,
    events: Iterable[Recorded] | None,
    sink: Sink | None,
    **schedule: Any,
) -> OracleRun:
    """What the nodes of a recorded run pushed, in the order in which its server heard it."""
    if events is None:
        raise OptionError(
            "the oracle of bilayered needs the order in which pushes arrived, and no events are given",
            hint="pass the events of the run, or train with BiLayered(engine='inline')",
        )
    rows = [as_event(item) for item in events]
    goals = [e.data["passes"] for e in rows if e.name == "arrival" and e.data.get("message") == "goal"]
    decisions: list[Decision] = []

    def watch(event: Event) -> None:
        if event.kind == "decision":
            decisions.append(Decision(event.name, event.batch, event.data.get("cause", "user"), event.data))
        if sink is not None:
            sink(event)

    made = replay(
        model,
        loss,
        optimizer,
        replace(strategy, engine="inline", address=None, insecure=False),
        data,
        rows,
        epochs=max(goals, default=1),
        settings=settings,
        sink=watch,
        **schedule,
    )
    told = Record.of(rows).losses
    differing = [n for n, value in enumerate(made.losses) if n in told and told[n] != value]
    if made.first_difference is not None:
        differing.append(made.first_difference - 1)
    return OracleRun(made.losses, tuple(decisions), made.plan, min(differing, default=None))


def _compare_computed(event: Event, record: Record) -> None:
    """Raise InternalError where a decision made from data comes out otherwise than in the run."""
    last = max((batch for batch, _ in record.computed), default=-1)
    if event.data.get("cause") != "data" or event.name == "switch" or event.batch > last:
        return
    theirs = record.computed.get((event.batch, event.name))
    if theirs is None or plain(dict(theirs)) != plain(dict(event.data)):  # numbers that are none are alike, too
        found = "did not make it" if theirs is None else f"had {dict(theirs)}"
        raise InternalError(
            f"the replay decides {event.name} at mini-batch {event.batch} with {dict(event.data)}, and the run {found}",
            hint="pass the run's own model, settings, strategy and batches",
        )


def _pipeline(step: Step) -> PipelinedStep | HybridStep:
    if not isinstance(step, (PipelinedStep, HybridStep)):
        raise OptionError("the run was cut anew, and this strategy has no cuts", hint="pass the strategy of the run")
    return step


def _losses(results: Sequence[StepResult]) -> list[float]:
    return [float(result.loss) for result in results]


def _repeating(strategy: Strategy, record: Record, *, recorded: bool) -> Strategy:
    """``strategy`` in one thread, with the cuts and the switch of the record."""
    if isinstance(strategy, Concurrent) and strategy.groups is None and record.groups is not None:
        strategy = replace(strategy, groups=record.groups)  # they were measured, and might come out otherwise
    if not isinstance(strategy, Hybrid):
        return _recut(inline(strategy), record.plans[0])
    rule = SwitchRule.parse(strategy.switch)
    if not recorded:
        if rule.kind != "batch":
            raise OptionError(
                f"switch={strategy.switch!r} depends on epochs, which the oracle does not know",
                hint="pass the events of the run, or use switch='batch:N'",
            )
        return inline(strategy)
    if rule.kind == "stall":
        _check_stall(rule, record)
    first, then = (_recut(inline(part), record.plans[i]) for i, part in enumerate((strategy.first, strategy.then)))
    if record.switch is None:
        return first
    if first == then and isinstance(then, Pipelined):  # they were chosen alike; this difference changes nothing
        then = replace(then, max_staleness=inf)
    return Hybrid(first, then, switch=f"batch:{record.switch.batch}")


def _recut(strategy: Strategy, plans: Sequence[Mapping[str, Any]]) -> Strategy:
    """Cut where the run was cut, should that have been measured: it might come out otherwise."""
    if plans and isinstance(strategy, Pipelined) and strategy.cuts is None and strategy.ppv is None:
        wanted = ("accumulate", "correction") if strategy.stages == "auto" else ()
        chosen: dict[str, Any] = {name: plans[0][name] for name in wanted if name in plans[0]}
        if strategy.stages == "auto" and strategy.clock != plans[0]["clock"].split()[0]:
            chosen["clock"] = plans[0]["clock"]
        if strategy.stages == "auto":
            chosen["slack"] = min(strategy.slack, len(plans[0]["cuts"]))  # none where it chose no pipeline
        return replace(strategy, stages=None, cuts=tuple(plans[0]["cuts"]), recut="off", **chosen)
    return strategy


def _compare(own: Mapping[str, Any], plans: Sequence[Mapping[str, Any]]) -> None:
    """Raise OptionError where the replay's plan computes other numbers than a plan of the run."""
    words = {
        "cuts": "cuts", "delays": "delays", "accumulate": "accumulate", "correction": "correction",
        "threads_per_worker": "threads a worker",
    }  # fmt: skip
    for plan in plans:
        for key, word in words.items():
            theirs, ours = plan.get(key), own.get(key)
            if isinstance(theirs, (list, tuple)) and isinstance(ours, (list, tuple)):
                theirs, ours = list(theirs), list(ours)
            if theirs is not None and theirs != ours:
                hint = "pass the run's Settings(threads=...)" if key == "threads_per_worker" else None
                raise OptionError(
                    f"the run was planned with {word} {theirs}, the replay with {ours}",
                    hint=hint or "pass the strategy of the run",
                )


def _check_stall(rule: SwitchRule, record: Record) -> None:
    """Recompute from the recorded validations where a stall was reached."""
    stall = Stall()
    for validation in record.validations:
        stall.update(validation.accuracy, validation.loss)
        if stall.waited < rule.number:
            continue
        came = None if record.switch is None else record.switch.batch
        goes_on = validation.batch <= max(record.losses, default=-1)
        if came != validation.batch and (came is not None or goes_on):
            raise InternalError(
                f"validation stalled after {validation.batch} mini-batches, and the run "
                + ("did not switch" if came is None else f"switched after {came}")
            )
        return
    if record.switch is not None and record.validations:
        raise InternalError(f"the run switched after {record.switch.batch} mini-batches, and validation did not stall")
