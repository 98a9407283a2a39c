"""What a layer would have saved, without its values: sizes, types and layouts, for any number of samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convoy.graph.rules import Saved
from convoy.graph.rules.rule import layout
from convoy.strategies.tasks.units import Units

_PASSING = frozenset(("batch_norm", "dropout"))  # they change values only: not run here, statistics stay


@dataclass(frozen=True, slots=True)
class Blank:
    """Of one tensor: the shape of a sample, type, memory format."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    format: torch.memory_format

    @classmethod
    def of(cls, tensor: Tensor) -> Blank:
        return cls(tuple(tensor.shape[1:]), tensor.dtype, layout(tensor))

    def tensor(self, samples: int) -> Tensor:
        """Memory that nobody has written: its values mean nothing."""
        return torch.empty((samples, *self.shape), dtype=self.dtype, memory_format=self.format)


@dataclass(frozen=True, slots=True)
class Template:
    """``input``: what the unit takes first; ``saved`` and ``facts``: what it saves."""

    input: Blank
    saved: tuple[Blank, ...] = ()
    facts: tuple[Any, ...] = ()

    def make(self, samples: int) -> Saved:
        return Saved(tuple(blank.tensor(samples) for blank in self.saved), self.facts)


def templates(units: Units, inputs: Mapping[str, Tensor]) -> dict[str, Template]:
    """By unit name, from a forward pass of two samples through the rules. ``inputs``: the batch by input name. Every
    unit has a rule. The model stays as it is."""
    values = {name: value[:2] for name, value in inputs.items()}
    found = {}
    with torch.no_grad():
        for unit in units.units:
            rule, options, parameters = unit.rule.rule, unit.rule.options, unit.rule.parameters
            arguments = [values[name] for name in unit.inputs]
            first = Blank.of(arguments[0])
            if rule.kind in _PASSING:
                found[unit.name], values[unit.outputs[0]] = Template(first), arguments[0]
                continue
            y, saved = rule.forward(options, parameters, arguments)
            found[unit.name] = Template(first, tuple(map(Blank.of, saved.tensors)), saved.facts)
            values[unit.outputs[0]] = y
    return found
