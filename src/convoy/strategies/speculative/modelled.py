"""Time of a sample on modelled engines, against their multiply-accumulate units and the share of samples accepted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from convoy.errors import ModelError
from convoy.graph.capture import capture
from convoy.hardware.engines import Engines
from convoy.schedule.plan import columns
from convoy.strategies.base import Settings
from convoy.strategies.batch import arguments
from convoy.strategies.speculative.build import FORECAST, Prepared, forecast, prepare
from convoy.strategies.speculative.strategy import Speculative
from convoy.strategies.tasks.units import Unit, Units

VARIANTS = {
    "faithful": Speculative(form="faithful", predictor="label-last"),
    "faithful, zero": Speculative(form="faithful", predictor="zero"),
    "cut, label-mean": Speculative(form="cut", predictor="label-mean"),
    "cut, zero": Speculative(form="cut", predictor="zero"),
}
"""What is modelled, by the name of its row."""


@dataclass(frozen=True)
class Row:
    """Seconds a sample at ``units`` multiply-accumulate units an engine: exact on one engine and on all, and with a
    form of speculation at each acceptance. ``refused``: why a form cannot be, its times then empty."""

    units: int
    form: str
    one: float
    exact: float
    speculated: tuple[float, ...]
    refused: str = ""


@dataclass(frozen=True)
class Modelled:
    """What two engines take for a sample. ``accepted``: the shares of samples that ``Row.speculated`` belongs to."""

    model: str
    batch_size: int
    engines: Engines
    accepted: tuple[float, ...]
    rows: tuple[Row, ...]

    def table(self) -> str:
        head = ("units", "form", "one engine", "exact", *(f"accepted {a:.0%}" for a in self.accepted))
        lines = [
            (
                str(row.units), row.form, _micro(row.one), _saved(row.exact, row.one),
                *([_saved(t, row.one) for t in row.speculated] or ["refused"] * len(self.accepted)),
            )
            for row in self.rows
        ]  # fmt: skip
        about = (
            f"{self.model}, batch {self.batch_size}, {self.engines.name}: {self.engines.count} engines at "
            f"{self.engines.clock_hz / 1e6:g} MHz, {self.engines.bytes_per_second / 1e9:g} GB/s each; time of a "
            "sample, and what is saved of that of one engine"
        )
        refused = {row.form: f"{row.form} is refused: {row.refused}" for row in self.rows if row.refused}
        return "\n".join([about, columns(head, lines), *refused.values(), f"source: {self.engines.source}"])

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _micro(seconds: float) -> str:
    return f"{1e6 * seconds:.1f} µs"


def _saved(seconds: float, one: float) -> str:
    return f"{1e6 * seconds:.1f} µs ({1 - seconds / one:.0%})"


def time_per_sample(
    model: nn.Module, engines: Engines, batch_size: int, image: tuple[int, int, int], units: Sequence[int] = ()
) -> Modelled:
    """Simulate a training step of ``model`` (captured, not run) on ``engines``, with their own number of units or each
    of ``units``. ``image``: channels, height, width.

    Raises ModelError for a model that neither form can train.
    """
    graph, rows = capture(model, (torch.zeros(batch_size, *image),)), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs, refused = graph.bind(*arguments(torch.zeros(batch_size, *image))), dict[str, ModelError]()
    prepared: dict[str, Prepared] = {}
    for name, strategy in VARIANTS.items():
        try:
            prepared[name] = prepare(
                strategy, graph, model, nn.functional.cross_entropy, optimizer, Settings(threads=1), None, inputs
            )
        except ModelError as error:
            refused[name] = error
    if not prepared:
        raise next(iter(refused.values()))
    some = next(iter(prepared.values()))
    for count in units or (engines.units,):
        machine = replace(engines, units=count)
        timed = {name: _timed(one, machine) for name, one in prepared.items()}
        one = forecast(_timed(some, machine), "exact", 1, 0.0) / batch_size
        exact = forecast(_timed(some, machine), "exact", machine.count, 0.0) / batch_size
        for name in VARIANTS:
            found = [forecast(timed[name], "speculate", machine.count, a) for a in FORECAST] if name in timed else []
            why = str(refused.get(name, ""))
            rows.append(Row(count, name, one, exact, tuple(t / batch_size for t in found), why))
    return Modelled(graph.model_name, batch_size, engines, FORECAST, tuple(rows))


def _timed(prepared: Prepared, engines: Engines) -> Prepared:
    """``prepared`` with the times of these engines in place of mere operations."""
    elements = {unit.name: _elements(prepared.units, unit) for unit in prepared.units.units}

    def seconds(kind: str, unit: Unit, share: float) -> float:
        operations = prepared.flops[unit.name]["FIG".index(kind)]
        samples, weights = elements[unit.name]
        return engines.seconds(operations * share, samples * share + weights) if operations else 0.0

    return replace(prepared, how=replace(prepared.how, seconds=seconds))


def _elements(units: Units, unit: Unit) -> tuple[int, int]:
    """What each of the three tasks of a unit moves: values of the samples (two of input, output and their gradients),
    and weights or their gradients."""
    specs = units.specs
    values = [specs[name].shape for name in (*unit.inputs, *unit.outputs) if name in specs]
    return sum(torch.Size(shape).numel() for shape in values), sum(p.numel() for p in unit.parameters)
