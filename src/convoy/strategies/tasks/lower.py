"""From units to operations in program order: forward, loss, backward in reverse, updates as gradients are ready."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from convoy.strategies.tasks import kernels
from convoy.strategies.tasks.ops import WHOLE, How, Lowered, Op, Partition, Read
from convoy.strategies.tasks.units import Unit, Units, owners
from convoy.strategies.tasks.update import Updates


@dataclass(frozen=True)
class Lowering:
    """What the operations depend on besides the units. ``partitions`` by unit; whole where nothing is said."""

    loss: Callable[[Any, Any], Tensor]
    updates: Updates
    seed: int = 0
    autocast: kernels.Autocast = nullcontext


def lower(units: Units, how: Lowering) -> Lowered:
    return _Lowerer(units, how).run()


class _Lowerer:
    def __init__(self, units: Units, how: Lowering) -> None:
        self.units, self.how = units, how
        self.ops: list[Op] = []
        self.values: dict[str, Partition] = {}
        self.weights = owners(units.units, "parameters")
        self.buffers = owners(units.units, "buffers")
        self.shares: dict[str, list[str]] = {}  # value → names of the gradients that its consumers give
        self.made: dict[str, list[Unit]] = {}  # owner of weights → units whose gradients are there

    def run(self) -> Lowered:
        for node in self.units.graph.nodes:
            if node.kind == "input":
                self.values[f"y.{node.name}"] = WHOLE
        self.values["t"] = WHOLE
        for unit in self.units.units:
            self._forward(unit)
        self._loss()
        for unit in reversed(self.units.units):
            if unit.name in self.units.active:
                self._backward(unit)
        self._rest()
        return Lowered(self.ops, self.values)

    # --- parts ---------------------------------------------------------------------------------------------

    def _emit(self, op: Op) -> None:
        self.ops.append(op)
        self.values.update(dict.fromkeys(op.writes, op.partition))

    def _read(self, value: str, how: How = "tile") -> Read:
        return Read(value, how)

    def _forward(self, unit: Unit) -> None:
        reads = tuple(self._read(f"y.{name}") for name in unit.inputs)
        writes = (*(f"y.{name}" for name in unit.outputs), f"s.{unit.name}")
        if unit.bound is not None:
            run = kernels.forward(unit, WHOLE, self.how.seed)
        else:
            run = kernels.whole_forward(unit, self._wanted(unit), self.how.seed, self.how.autocast)
        weights, buffers = self._states(unit)
        self._emit(Op("F", unit.name, WHOLE, reads, writes, run, weights, buffers))

    def _states(self, unit: Unit) -> tuple[tuple[str, ...], tuple[str, ...]]:
        weights = (f"W{self.weights[unit.name]}",) if unit.name in self.weights else ()
        buffers = (f"R{self.buffers[unit.name]}",) if unit.name in self.buffers else ()
        return weights, buffers

    def _wanted(self, unit: Unit) -> tuple[int, ...]:
        """Places of the inputs whose gradient is wanted."""
        return tuple(i for i, name in enumerate(unit.inputs) if name in self.units.needs)

    def _loss(self) -> None:
        leaves = self.units.leaves
        wanted = tuple(i for i, name in enumerate(leaves) if name in self.units.needs)
        reads = (*(self._read(f"y.{name}", "whole") for name in leaves), self._read("t", "whole"))
        writes = self._gradients("loss", [leaves[i] for i in wanted])
        run = kernels.loss(self.units.graph, self.how.loss, leaves, wanted, self.how.autocast)
        self._emit(Op("L", "loss", WHOLE, reads, (*writes, "w.loss"), run))

    def _gradients(self, consumer: str, names: Sequence[str]) -> list[str]:
        """Names for the gradients that ``consumer`` gives to the values ``names`` (one of them perhaps twice)."""
        given = []
        for name in names:
            shares = self.shares.setdefault(name, [])
            share = f"d.{name}" if self._consumers[name] == 1 else f"d.{name}<{consumer}"
            if share in shares:
                share = f"{share}.{len(shares)}"
            shares.append(share)
            given.append(share)
        return given

    @property
    def _consumers(self) -> Mapping[str, int]:
        """Value → how many gradients will come."""
        if not hasattr(self, "_counted"):
            self._counted: dict[str, int] = {}
            readers = [u.inputs for u in self.units.units if u.name in self.units.active]
            for names in (*readers, self.units.leaves):
                for name in names:
                    self._counted[name] = self._counted.get(name, 0) + 1
        return self._counted

    def _gradient(self, name: str) -> str | None:
        """The name of the whole gradient of a value; adds the shares up where there are several."""
        shares = self.shares.get(name, [])
        whole = f"d.{name}"
        if shares and shares != [whole] and whole not in self.values:
            self._emit(Op("A", name, WHOLE, tuple(map(self._read, shares)), (whole,), kernels.add))
        return whole if shares else None

    def _backward(self, unit: Unit) -> None:
        given = [(i, g) for i, name in enumerate(unit.outputs) if (g := self._gradient(name)) is not None]
        wanted = self._wanted(unit)
        reads = (self._read(f"s.{unit.name}"), *(self._read(g) for _, g in given))
        shares = tuple(self._gradients(unit.name, [unit.inputs[i] for i in wanted]))
        weights, _ = self._states(unit)
        if unit.bound is None:
            run = kernels.whole_backward(unit, wanted, [i for i, _ in given])
            self._emit(Op("B", unit.name, WHOLE, reads, (*shares, f"w.{unit.name}"), run, weights))
        else:
            if wanted:
                self._emit(Op("I", unit.name, WHOLE, reads, shares, kernels.input_grad(unit, wanted), weights))
            if unit.parameters:
                self._emit(Op("G", unit.name, WHOLE, reads, (f"w.{unit.name}",), kernels.weight_grad(unit)))
        if unit.parameters:
            self._made_gradients(unit)

    # --- updates -------------------------------------------------------------------------------------------

    def _made_gradients(self, unit: Unit) -> None:
        """Update the weights that ``unit`` belongs to once all units that share them have their gradients."""
        owner = self.weights[unit.name]
        made = self.made.setdefault(owner, [])
        made.append(unit)
        sharing = [n for n, o in self.weights.items() if o == owner and n in self.units.active]
        if len(made) == len(sharing) and not self.how.updates.together:
            self._update(owner, made)

    def _update(self, owner: str, units: Sequence[Unit]) -> None:
        reads = tuple(self._read(f"w.{u.name}", "all") for u in units)
        parameters = [u.parameters for u in units]
        axes = [self.values[f"w.{u.name}"] for u in units]
        run = self.how.updates.make(owner, parameters, axes)
        owned = dict.fromkeys(f"W{self.weights[u.name]}" for u in units)
        self._emit(Op("U", owner, WHOLE, reads, (), run, tuple(owned), tuple(owned)))

    def _rest(self) -> None:
        """With clipping all weights are updated together; else what the optimizer has besides, such as the weights of
        a loss."""
        if self.how.updates.together:
            units = [unit for made in self.made.values() for unit in made]
            if units:
                self._update("all", units)
                return
        known: list[nn.Parameter] = [p for made in self.made.values() for u in made for p in u.parameters]
        run = self.how.updates.rest(known)
        if run is not None:
            self._emit(Op("U", "rest", WHOLE, (self._read("w.loss"),), (), run))
