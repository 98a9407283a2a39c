"""The contenders of the speed benchmark: one engine, and two that train exactly or speculate, at a given acceptance."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from contenders_of_speed import BATCHES, batches_of, model_of, optimizer_of
from torch import Tensor, nn

from convoy.strategies.base import Settings, Strategy
from convoy.strategies.pipelined import Pipelined
from convoy.strategies.sequential import Sequential
from convoy.strategies.speculative import Speculative, cut, faithful
from convoy.strategies.speculative.acceptance import Selection

NEVER = 10**9


def strategy_of(options: Mapping[str, Any]) -> tuple[Strategy, int]:
    """The strategy of a mode, and the cores it runs on."""
    mode, accepted = options["mode"], options.get("accepted")
    if mode == "one":
        return Sequential(), 1
    if mode == "tasks":
        return Sequential(inner="tasks"), 2
    if mode == "exact":
        return Speculative(form="faithful", warmup=NEVER), 2
    if mode == "late":
        return Pipelined(stages=2, clock="1f1b", correction="predict+spike"), 2
    _accept(accepted)
    fields = {key: options[key] for key in ("cut", "predictor") if options.get(key) is not None}
    alone, mode = mode.startswith("alone "), mode.removeprefix("alone ")
    form, _, predictor = mode.partition(":")
    fields["predictor"] = predictor or fields.get("predictor") or {"faithful": "label-last", "cut": "label-mean"}[form]
    return Speculative(form=form, threshold=1.0, warmup=4, controller="always", **fields), 1 if alone else 2


def _accept(share: float) -> None:
    """Let all tests accept this share of every mini-batch, after doing their work."""

    def chosen(samples: int, measured: Selection) -> Selection:
        rejected = torch.zeros(samples, dtype=torch.bool)
        rejected[: round((1.0 - share) * samples)] = True
        return Selection.of(rejected, measured.distance)

    by_signal, by_softmax, by_distance = cut.by_signal, faithful.by_softmax, faithful.by_distance

    def signal(speculated: Tensor | None, exact: Tensor, threshold: float) -> Selection:
        return chosen(exact.shape[0], by_signal(speculated, exact, threshold))

    def softmax(remembered: Tensor, real: Tensor, seen: Tensor, threshold: float) -> Selection:
        return chosen(real.shape[0], by_softmax(remembered, real, seen, threshold))

    def confident(distance: Tensor, threshold: float) -> Selection:
        return chosen(distance.shape[0], by_distance(distance, threshold))

    cut.by_signal, faithful.by_softmax, faithful.by_distance = signal, softmax, confident  # type: ignore[attr-defined]


class Engines:
    """A session (see ``common.contender``) that trains on synthetic batches."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        strategy, threads = strategy_of(options)
        model = model_of(options)
        self._data = batches_of(options)
        self._step = strategy.bind(
            model, nn.functional.cross_entropy, optimizer_of(model), settings=Settings(threads=threads)
        )
        self._steps(options["warm_up"])

    def _steps(self, count: int) -> None:
        for number in range(count):
            result = self._step(*self._data[number % BATCHES])
            if result is not None:  # a pipeline that fills has none
                float(result.loss)

    def info(self) -> Mapping[str, Any]:
        plan = self._step.plan()
        return {"plan": None if plan is None else plan.to_dict()}

    def measure(self, steps: int) -> Mapping[str, Any]:
        self._steps(1)
        start = time.perf_counter()
        self._steps(steps)
        return {"seconds": (time.perf_counter() - start) / steps}
