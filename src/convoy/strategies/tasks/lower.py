"""From units to operations in program order: forward, loss, backward in reverse, updates as gradients are ready.

A unit whose input is cut as the unit itself reads it tile by tile; otherwise the tiles are joined first (``J``), and
each tile of the unit takes a view of the whole, or all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from convoy.strategies.tasks import kernels, kernels_tiled
from convoy.strategies.tasks.ops import WHOLE, Lowered, Op, Partition, Read, Run
from convoy.strategies.tasks.tiles import estimate, moments_needed
from convoy.strategies.tasks.units import Unit, Units, owners
from convoy.strategies.tasks.update import Updates

_HEAVY = frozenset(("conv2d", "linear"))
_FRESH = _HEAVY | {"batch_norm", "add"}
"""Kinds whose output is new memory that is not saved, and whose input gradient (but that of add) is new too."""


@dataclass(frozen=True)
class Lowering:
    """What the operations depend on besides the units. ``partitions`` by unit; whole where nothing is said.
    ``update_elements``: weights of neighbouring units are updated together until there are so many."""

    loss: Callable[[Any, Any], Tensor]
    updates: Updates
    partitions: Mapping[str, Partition] = field(default_factory=dict)
    update_elements: int = 0
    seed: int = 0
    autocast: kernels.Autocast = nullcontext


def lower(units: Units, how: Lowering) -> Lowered:
    return _Lowerer(units, how).run()


class _Lowerer:
    def __init__(self, units: Units, how: Lowering) -> None:
        self.units, self.how = units, how
        self.ops: list[Op] = []
        self.values: dict[str, Partition] = {}
        self.weights = _grouped(units, owners(units.units, "parameters"), how.update_elements)
        self.buffers = owners(units.units, "buffers")
        self.shares: dict[str, list[str]] = {}  # value → names of the gradients that its consumers give
        self.running: list[Unit] = []  # those whose running statistics are still to be moved
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
        if self.running:  # nothing in the step waits for these, so that they fill gaps
            self._moved("statistics", self.running)
        return Lowered(self.ops, self.values)

    # --- parts ---------------------------------------------------------------------------------------------

    def _emit(self, kind: str, subject: str, cut: Partition, reads: Sequence[Read], writes: Sequence[str], run: Run,
              **more: Any) -> None:  # fmt: skip
        self.ops.append(Op(kind, subject, cut, tuple(reads), tuple(writes), run, **more))
        self.values.update(dict.fromkeys(writes, cut))

    def _cut(self, unit: Unit) -> Partition:
        return self.how.partitions.get(unit.name, WHOLE)

    def _tile(self, value: str, cut: Partition) -> Read:
        return Read(value, "tile") if self.values[value] == cut else Read(self._joined(value), "view")

    def _whole(self, value: str) -> Read:
        return Read(self._joined(value), "whole")

    def _joined(self, value: str) -> str:
        cut, name = self.values[value], f"j.{value}"
        if cut == WHOLE:
            return value
        if name not in self.values:
            self._emit("J", value, WHOLE, [Read(value, "all")], [name], kernels.join(cut))
        return name

    def _states(self, unit: Unit) -> tuple[tuple[str, ...], tuple[str, ...]]:
        weights = (f"W{self.weights[unit.name]}",) if unit.name in self.weights else ()
        buffers = (f"R{self.buffers[unit.name]}",) if unit.name in self.buffers else ()
        return weights, buffers

    def _wanted(self, unit: Unit) -> tuple[int, ...]:
        """Places of the inputs whose gradient is wanted."""
        return tuple(i for i, name in enumerate(unit.inputs) if name in self.units.needs)

    def _from_all(self, unit: Unit) -> bool:
        """Whether tiles are channels of a layer that reads all channels of its input."""
        return self._cut(unit).axis == "channels" and unit.rule.tiling.forward == "all"

    def _work(self, unit: Unit) -> dict[str, dict[str, Any]]:
        """Estimates for the operations of a unit, by kind."""
        seconds = estimate(unit, self.units.specs)
        heavy = unit.bound is None or unit.bound.rule.kind in _HEAVY
        by_kind = {"F": seconds.forward, "I": seconds.input_grad, "G": seconds.weight_grad, "B": seconds.input_grad}
        return {kind: {"seconds": spent, "heavy": heavy} for kind, spent in by_kind.items()}

    # --- forward -------------------------------------------------------------------------------------------

    def _forward(self, unit: Unit) -> None:
        name, cut, (weights, buffers) = unit.name, self._cut(unit), self._states(unit)
        writes = (*(f"y.{output}" for output in unit.outputs), f"s.{name}")
        if unit.bound is not None and cut.axis == "samples" and moments_needed(unit):
            self._normalised(unit, cut)
            return
        all_channels = unit.bound is not None and self._from_all(unit)
        reads = [self._whole(f"y.{n}") if all_channels else self._tile(f"y.{n}", cut) for n in unit.inputs]
        if unit.bound is None:
            run = kernels.whole_forward(unit, self._wanted(unit), self.how.seed, self.how.autocast)
        elif all_channels:
            run = kernels_tiled.forward_from_all(unit, cut)
        else:
            drawn = unit.bound.draw is not None and cut != WHOLE
            if drawn:
                reads.append(self._mask(unit, reads[0], cut))
            if cut.axis == "channels":
                spec = self.units.specs[unit.inputs[0]]
                run = kernels_tiled.forward_from_own(unit, cut, spec.shape[1])
            else:
                run = kernels.forward(unit, self.how.seed, mask_given=drawn)
        more: dict[str, Any] = {"reads_state": weights, "moves": buffers, "own_state": cut.axis == "channels"}
        if unit.bound is not None:
            more["fresh"] = unit.bound.rule.kind in _FRESH
            more["overwriting"] = kernels.overwriting_forward(unit)
        self._emit("F", name, cut, reads, writes, run, **more, **self._work(unit)["F"])

    def _mask(self, unit: Unit, x: Read, cut: Partition) -> Read:
        """The mask of a dropout, drawn for the whole batch."""
        first = Read(x.value, "first" if x.how == "tile" else "whole")
        run = kernels_tiled.mask(unit, self.units.specs[unit.inputs[0]], self.how.seed)
        self._emit("K", unit.name, WHOLE, [first], [f"k.{unit.name}"], run)
        return Read(f"k.{unit.name}", "view")

    def _normalised(self, unit: Unit, cut: Partition) -> None:
        """BatchNorm over slices: partial moments, those of the batch, then slice by slice."""
        name, (weights, buffers) = unit.name, self._states(unit)
        x = self._tile(f"y.{unit.inputs[0]}", cut)
        seconds = estimate(unit, self.units.specs).forward
        self._emit("M", name, cut, [x], [f"m.{name}"], kernels_tiled.moments, seconds=seconds / 2)
        self._emit("C", name, WHOLE, [Read(f"m.{name}", "all")], [f"c.{name}"], kernels_tiled.combine(unit),
                   reads_state=weights)  # fmt: skip
        alone = sum(owner == self.buffers.get(name) for owner in self.buffers.values()) == 1
        if buffers and alone:
            self.running.append(unit)
        elif buffers:  # the layer is used several times: its statistics move in order
            self._moved(name, [unit])
        self._emit("F", name, cut, [x, Read(f"c.{name}", "whole")], [f"y.{unit.outputs[0]}", f"s.{name}"],
                   kernels_tiled.normalise, seconds=seconds, fresh=True)  # fmt: skip

    def _moved(self, subject: str, units: Sequence[Unit]) -> None:
        """Running statistics of ``units``."""
        reads = [Read(f"c.{unit.name}", "whole") for unit in units]
        states = tuple(dict.fromkeys(state for unit in units for state in self._states(unit)[1]))
        self._emit("R", subject, WHOLE, reads, (), kernels_tiled.running(units), moves=states)

    def _loss(self) -> None:
        leaves = self.units.leaves
        wanted = tuple(i for i, name in enumerate(leaves) if name in self.units.needs)
        reads = [*(self._whole(f"y.{name}") for name in leaves), self._whole("t")]
        writes = self._gradients("loss", [leaves[i] for i in wanted])
        run = kernels.loss(self.units.graph, self.how.loss, leaves, wanted, self.how.autocast)
        self._emit("L", "loss", WHOLE, reads, (*writes, "w.loss"), run)

    # --- backward ------------------------------------------------------------------------------------------

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

    @cached_property
    def _consumers(self) -> Mapping[str, int]:
        """Value → how many gradients will come."""
        counted: dict[str, int] = {}
        readers = [u.inputs for u in self.units.units if u.name in self.units.active]
        for names in (*readers, self.units.leaves):
            for name in names:
                counted[name] = counted.get(name, 0) + 1
        return counted

    def _gradient(self, name: str) -> str | None:
        """The name of the gradient of a value; adds the shares up where there are several."""
        shares, total = self.shares.get(name, []), f"d.{name}"
        if shares and shares != [total] and total not in self.values:
            cut = self.values[f"y.{name}"]
            reads = [self._tile(share, cut) for share in shares]
            self._emit("A", name, cut, reads, [total], kernels.add, fresh=True,
                       overwriting=kernels.overwriting_add(len(reads)))  # fmt: skip
        return total if shares else None

    def _backward(self, unit: Unit) -> None:
        name, cut, (weights, _) = unit.name, self._cut(unit), self._states(unit)
        given = [(i, g) for i, output in enumerate(unit.outputs) if (g := self._gradient(output)) is not None]
        wanted, work = self._wanted(unit), self._work(unit)
        saved, gradients = Read(f"s.{name}", "tile"), [g for _, g in given]
        if unit.bound is None:
            shares = self._gradients(name, [unit.inputs[i] for i in wanted])
            run = kernels.whole_backward(unit, wanted, [i for i, _ in given])
            reads = [saved, *(self._whole(g) for g in gradients)]
            self._emit("B", name, WHOLE, reads, [*shares, f"w.{name}"], run, reads_state=weights, **work["B"])
        elif cut.axis == "samples" and moments_needed(unit):
            self._normalised_back(unit, cut, gradients[0])
        else:
            grad = self._tile(gradients[0], cut)
            if wanted:
                shares = self._gradients(name, [unit.inputs[i] for i in wanted])
                run, reads = kernels.input_grad(unit, wanted), [saved, grad]
                if self._from_all(unit):
                    run = kernels_tiled.input_grad_from_all(unit, cut)
                    reads = [Read(f"s.{name}", "first"), self._whole(gradients[0])]
                fresh = unit.rule.rule.kind in (_FRESH | {"relu"}) - {"add"}
                self._emit("I", name, cut, reads, shares, run, reads_state=weights, fresh=fresh,
                           overwriting=kernels.overwriting_input_grad(unit), **work["I"])  # fmt: skip
            if unit.parameters:
                self._emit("G", name, cut, [saved, grad], [f"w.{name}"], kernels.weight_grad(unit), **work["G"])
        if unit.parameters:
            self._made_gradients(unit)

    def _normalised_back(self, unit: Unit, cut: Partition, gradient: str) -> None:
        """BatchNorm over slices: partial sums, those of the batch (which are the weight gradient), then the slices."""
        name = unit.name
        reads = [Read(f"s.{name}", "tile"), self._tile(gradient, cut)]
        first = Read(f"s.{name}", "first")
        seconds = estimate(unit, self.units.specs).input_grad
        self._emit("S", name, cut, reads, [f"q.{name}"], kernels_tiled.grad_sums(unit), seconds=seconds / 2)
        self._emit("T", name, WHOLE, [first, Read(f"q.{name}", "all")], [f"e.{name}", f"w.{name}"],
                   kernels_tiled.add_sums(unit))  # fmt: skip
        if self._wanted(unit):
            shares = self._gradients(name, [unit.inputs[0]])
            self._emit("I", name, cut, [*reads, Read(f"e.{name}", "whole")], shares, kernels_tiled.normalise_grad,
                       seconds=seconds, fresh=True)  # fmt: skip

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
        reads = [Read(f"w.{u.name}", "all") for u in units]
        parameters = [u.parameters for u in units]
        axes = [self.values[f"w.{u.name}"] for u in units]
        run = self.how.updates.make(owner, parameters, axes)
        owned = dict.fromkeys(f"W{self.weights[u.name]}" for u in units)
        self._emit("U", owner, WHOLE, reads, (), run, reads_state=tuple(owned), moves=tuple(owned))

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
            self._emit("U", "rest", WHOLE, [Read("w.loss", "tile")], (), run)


def _grouped(units: Units, owner: Mapping[str, str], elements: int) -> dict[str, str]:
    """``owner`` by unit, with neighbours under one name until they have ``elements`` weights, from the end."""
    group: dict[str, str] = {}
    members: list[str] = []
    size = 0
    for unit in reversed(units.units):
        if unit.name not in units.active or unit.name not in owner or owner[unit.name] in (*group, *members):
            continue
        members.append(owner[unit.name])
        size += sum(p.numel() for p in unit.parameters)
        if size >= elements:
            group.update(dict.fromkeys(members, members[-1]))
            members, size = [], 0
    group.update(dict.fromkeys(members, members[-1] if members else ""))
    return {name: group.get(own, own) for name, own in owner.items()}
