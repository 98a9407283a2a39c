"""Who plans, and who trains what was planned: the rows of ``convoy plan``, each carried out as its options say."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "speed"))

import torch
from contenders import BATCHES, ConvoyPipelined, DataParallel, batches_of, model_of, optimizer_of
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import convoy
from convoy.comparison.spec import parse
from convoy.planning import replicas, shared_step
from convoy.strategies.base import Settings, Strategy
from convoy.strategies.speculative import step as speculative_step

CUT = "cut before "
PASS = 16
"""Mini-batches of an epoch of a bi-layered run, here and in the plan."""


def complete(options: Mapping[str, Any]) -> dict[str, Any]:
    return {"model": options["net"], "shape": [3, 32, 32], "precision": "float32", "warm_up": 4, **options}


class Planner:
    """``convoy.plan`` of a network, once a measurement."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = complete(options)
        torch.set_num_threads(options["threads"])
        replicas.EPOCH = PASS

    def info(self) -> Mapping[str, Any]:
        return {}

    def measure(self, steps: int) -> Mapping[str, Any]:
        model = model_of(self._options)
        batch = batches_of(self._options)[0]
        began = time.perf_counter()
        plan: Any = convoy.plan(model, batch, workers=self._options["threads"], optimizer=optimizer_of(model))
        seconds = time.perf_counter() - began
        rows = {
            f"{row.name} {row.options}".rstrip(): {
                "strategy": row.name, "asked": row.options, "note": row.note, "step_seconds": row.step_seconds,
            }
            for row in plan.rows
        }  # fmt: skip
        refused = [f"{each.name}: {each.reason}" for each in plan.refused]
        return {"seconds": seconds, "rows": rows, "refused": refused, "advice": plan.advice}


def asked(options: Mapping[str, Any]) -> tuple[Strategy, int]:
    """The strategy of a row, and its threads."""
    words = options["asked"].split()
    fields = dict(zip(words[::2], words[1::2], strict=True))
    threads = int(fields.pop("--threads", options["threads"]))
    if options["note"].startswith(CUT):
        fields.pop("--stages")
        fields["--cuts"] = options["note"].removeprefix(CUT).replace(", ", ",")
    if options["strategy"] == "speculative":
        fields |= {"--warmup": str(4), "--controller": "always"}
    text = ",".join(f"{name.removeprefix('--')}={value}" for name, value in fields.items())
    return parse(f"{options['strategy']}:{text}" if text else options["strategy"]), threads


def trained(options: Mapping[str, Any]) -> Any:
    """A session for a row of the plan."""
    strategy, threads = asked(options)
    options = complete(options) | {"threads": threads}
    if options["strategy"] == "pipelined":
        values = {k: v for k, v in convoy.strategies.registry.strategy_values(strategy).items() if k != "name"}
        return ConvoyPipelined({**options, "strategy": values})
    return Nodes(strategy, options) if options["strategy"] == "bilayered" else Bound(strategy, options)


class Bound:
    """A strategy bound to the network; nothing is in flight between two steps."""

    def __init__(self, strategy: Strategy, options: Mapping[str, Any]) -> None:
        torch.set_num_threads(options["threads"])
        if strategy.name == "speculative":
            _hold_acceptance()
        model = model_of(options)
        settings = Settings(threads=options["threads"])
        self._step = strategy.bind(model, nn.functional.cross_entropy, optimizer_of(model), settings=settings)
        self._data = batches_of(options)
        self._steps(12 if strategy.name == "speculative" else options["warm_up"])

    def info(self) -> Mapping[str, Any]:
        return {}

    def _steps(self, count: int) -> list[float]:
        seconds = []
        for number in range(count):
            start = time.perf_counter()
            self._step(*self._data[number % BATCHES])
            seconds.append(time.perf_counter() - start)
        return seconds

    def measure(self, steps: int) -> Mapping[str, Any]:
        return {"seconds": median(self._steps(1 + steps)[1:])}


def _hold_acceptance() -> None:
    """Let every comparison accept the share that the plan assumes, after doing its work."""
    plain = speculative_step.prepare

    def prepare(*arguments: Any) -> Any:
        return shared_step.accepting(plain(*arguments), shared_step.ACCEPTED)

    speculative_step.prepare = prepare


class Nodes:
    """A bi-layered run of a few short epochs; those after the first and before the last count."""

    def __init__(self, strategy: Strategy, options: Mapping[str, Any]) -> None:
        self._strategy, self._options = strategy, options

    def info(self) -> Mapping[str, Any]:
        return {}

    def measure(self, steps: int) -> Mapping[str, Any]:
        model, size = model_of(self._options), self._options["batch"]
        x, y = batches_of(self._options, size * PASS)[0]
        with tempfile.TemporaryDirectory() as place:
            trainer = convoy.Trainer(
                model, nn.CrossEntropyLoss(), optimizer_of(model), strategy=self._strategy,
                settings=Settings(threads=self._options["threads"]), run_dir=place,
            )  # fmt: skip
            history = trainer.fit(DataLoader(TensorDataset(x, y), batch_size=size, shuffle=True), epochs=4)
        return {"seconds": median(record.seconds for record in history.epochs[1:-1]) / PASS}


def processes(options: Mapping[str, Any]) -> DataParallel:
    return DataParallel(complete(options))
