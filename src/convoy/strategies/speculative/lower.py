"""From units to the operations of a speculative mini-batch, in program order.

    F all units · P the signal is predicted · I~ it is sent back (· G~ weight gradients of it) · L the loss, and exactly
    back to where speculation began · C who is rejected · X their rows · I their rows sent back · G weight gradients of
    the mixed rows · U updates · M what is remembered for the next mini-batch

Program order is that of one thread. What may overlap follows from reads and writes: ``I~`` needs, in the cut form, what
the lower part saved; in the faithful form nothing but the label where outcomes are remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from convoy.strategies.speculative import kernels
from convoy.strategies.speculative.controller import Mode
from convoy.strategies.tasks import kernels as plain
from convoy.strategies.tasks.ops import WHOLE, Lowered, Op, Read, Run
from convoy.strategies.tasks.units import Unit, Units, owners
from convoy.strategies.tasks.update import Updates

EXACT, SPECULATED, ROWS = "d", "e", "r"


@dataclass(frozen=True)
class Memory:
    """State ``M<name>``: operations that read it when speculating, and the one that writes it."""

    name: str
    learn: Run
    learns_from: tuple[str, ...]  # values by their full names


@dataclass(frozen=True)
class Part:
    """What is speculated: the backward pass of ``inside`` from the signal of the value ``start`` on.

    ``compare`` says who is rejected, from the values ``compared`` (none: the exact and the speculated signal).
    ``predict`` makes the speculated signal from ``predicted_from`` (None: zero, of which nothing is
    sent). ``remembered``: how a unit sends signals back from memory (gradient of its output and the target → gradients
    of its inputs), for those that do. ``early``: weight gradients of the speculated signals are computed before the
    comparison and mended after it.
    """

    start: str
    inside: frozenset[str]
    compare: Run
    compared: tuple[str, ...]
    predict: Run | None
    predicted_from: tuple[str, ...] = ()
    start_memory: tuple[str, ...] = ()
    remembered: dict[str, Run] = field(default_factory=dict)
    memories: tuple[Memory, ...] = ()
    early: bool = True


@dataclass(frozen=True)
class How:
    """What else the operations depend on. ``seconds(kind, unit, share)``: estimate for a share of the samples."""

    loss: Callable[[Any, Any], Tensor]
    updates: Updates
    seed: int = 0
    autocast: plain.Autocast = nullcontext
    seconds: Callable[[str, Unit, float], float] = lambda kind, unit, share: 0.0
    accepted: float = 0.9


def lower(units: Units, part: Part, mode: Mode, how: How) -> Lowered:
    return _Lowerer(units, part, mode, how).run()


class _Lowerer:
    def __init__(self, units: Units, part: Part, mode: Mode, how: How) -> None:
        self.units, self.part, self.mode, self.how = units, part, mode, how
        self.lowered = Lowered()
        self.weights = owners(units.units, "parameters")
        self.buffers = owners(units.units, "buffers")
        self.shares: dict[tuple[str, str], list[str]] = {}  # (chain, value) → gradients that its consumers gave
        self.made: dict[str, list[Unit]] = {}
        self.active = [unit for unit in reversed(units.units) if unit.name in units.active]
        self.consumers: dict[str, int] = {}
        for names in (*(u.inputs for u in self.active), units.leaves):
            for name in names:
                self.consumers[name] = self.consumers.get(name, 0) + 1

    def run(self) -> Lowered:
        values = self.lowered.values
        values.update({f"y.{n.name}": WHOLE for n in self.units.graph.nodes if n.kind == "input"}, t=WHOLE)
        for unit in self.units.units:
            self._forward(unit)
        if self.mode != "exact":
            self._speculate()
        self._loss()
        for unit in self.active:
            if unit.name not in self.part.inside:
                self._exact(unit)
        if self.mode != "exact":
            self._compare()
        for unit in self.active:
            if unit.name in self.part.inside:
                self._rows(unit) if self.mode == "speculate" else self._exact(unit)
        self._rest()
        for memory in self.part.memories:
            state = f"M{memory.name}"
            self._emit("M", memory.name, memory.learns_from, (), memory.learn, moves=(state,))
        return self.lowered

    def _emit(self, kind: str, subject: str, reads: Sequence[str], writes: Sequence[str], run: Run,
              states: Sequence[str] = (), moves: Sequence[str] = (), seconds: float = 0.0) -> None:  # fmt: skip
        read = tuple(Read(value, "all" if kind == "U" else "tile") for value in reads)
        op = Op(kind, subject, WHOLE, read, tuple(writes), run, tuple(states), tuple(moves), seconds=seconds)
        self.lowered.ops.append(op)
        self.lowered.values.update(dict.fromkeys(writes, WHOLE))

    # --- forward and loss ----------------------------------------------------------------------------------

    def _forward(self, unit: Unit) -> None:
        wanted = self._wanted(unit)
        if unit.bound is not None:
            run = plain.forward(unit, self.how.seed)
        else:
            run = plain.whole_forward(unit, wanted, self.how.seed, self.how.autocast)
        writes = (*(f"y.{name}" for name in unit.outputs), f"s.{unit.name}")
        moves = (f"R{self.buffers[unit.name]}",) if unit.name in self.buffers else ()
        reads = [f"y.{name}" for name in unit.inputs]
        seconds = self.how.seconds("F", unit, 1.0)
        self._emit("F", unit.name, reads, writes, run, self._weight_states(unit), moves, seconds)

    def _weight_states(self, unit: Unit) -> tuple[str, ...]:
        return (f"W{self.weights[unit.name]}",) if unit.name in self.weights else ()

    def _wanted(self, unit: Unit) -> tuple[int, ...]:
        return tuple(i for i, name in enumerate(unit.inputs) if name in self.units.needs)

    def _loss(self) -> None:
        leaves = self.units.leaves
        wanted = tuple(i for i, name in enumerate(leaves) if name in self.units.needs)
        writes = self._give(EXACT, "loss", [leaves[i] for i in wanted])
        run = plain.loss(self.units.graph, self.how.loss, leaves, wanted, self.how.autocast)
        self._emit("L", "loss", [*(f"y.{name}" for name in leaves), "t"], (*writes, "w.loss"), run)

    # --- gradients of values -------------------------------------------------------------------------------

    def _give(self, chain: str, consumer: str, names: Sequence[str]) -> list[str]:
        """Names for the gradients that ``consumer`` gives to the values ``names``."""
        given = []
        for name in names:
            shares = self.shares.setdefault((chain, name), [])
            share = f"{chain}.{name}" if self.consumers[name] == 1 else f"{chain}.{name}<{consumer}"
            share += f".{len(shares)}" if share in shares else ""
            shares.append(share)
            given.append(share)
        return given

    def _gradient(self, chain: str, name: str) -> str | None:
        """The whole gradient of a value: the sum where several consumers gave one, None where none did."""
        shares, whole = self.shares.get((chain, name), []), f"{chain}.{name}"
        if shares and shares != [whole] and whole not in self.lowered.values:
            mark = {EXACT: "", SPECULATED: "~", ROWS: "+"}[chain]
            self._emit("A", f"{mark}{name}", shares, (whole,), plain.add)
        return whole if shares else None

    def _shares(self, chain: str, unit: Unit) -> tuple[str, ...]:
        return tuple(self._give(chain, unit.name, [unit.inputs[i] for i in self._wanted(unit)]))

    # --- exact ---------------------------------------------------------------------------------------------

    def _exact(self, unit: Unit) -> None:
        wanted, saved = self._wanted(unit), f"s.{unit.name}"
        given = [(i, g) for i, name in enumerate(unit.outputs) if (g := self._gradient(EXACT, name)) is not None]
        reads, shares = (saved, *(g for _, g in given)), self._shares(EXACT, unit)
        states, seconds = self._weight_states(unit), self.how.seconds
        if unit.bound is None:
            run = plain.whole_backward(unit, wanted, [i for i, _ in given])
            cost = seconds("I", unit, 1.0) + seconds("G", unit, 1.0)
            self._emit("B", unit.name, reads, (*shares, f"w.{unit.name}"), run, states, seconds=cost)
        else:
            if wanted:
                cost = seconds("I", unit, 1.0)
                self._emit("I", unit.name, reads, shares, plain.input_grad(unit, wanted), states, seconds=cost)
            if unit.parameters:
                self._exact_weights(unit, reads)
        self._update_when_made(unit)

    def _exact_weights(self, unit: Unit, reads: Sequence[str]) -> None:
        run, cost = plain.weight_grad(unit), self.how.seconds("G", unit, 1.0)
        if self.mode == "probe" and unit.name in self.part.inside:
            saved, exact = reads
            reads = (saved, "a.set", exact, *self._speculated(unit))
            run, cost = kernels.probed_weight_grad(unit), 2 * cost
        self._emit("G", unit.name, reads, (f"w.{unit.name}",), run, seconds=cost)

    # --- speculated ----------------------------------------------------------------------------------------

    def _speculate(self) -> None:
        part = self.part
        if part.predict is None:
            return
        (start,) = self._give_start(SPECULATED)
        self._emit("P", "signal", part.predicted_from, (start,), part.predict, part.start_memory)
        for unit in self.active:
            if unit.name not in part.inside:
                continue
            grad, wanted = self._gradient(SPECULATED, unit.outputs[0]), self._wanted(unit)
            assert grad is not None
            if wanted:
                shares = self._shares(SPECULATED, unit)
                run, reads = part.remembered.get(unit.name), (grad, "t")
                states = [*self._weight_states(unit)]
                if run is None:
                    run, reads = plain.input_grad(unit, wanted), (f"s.{unit.name}", grad)
                elif any(memory.name == unit.name for memory in part.memories):
                    states.append(f"M{unit.name}")
                self._emit("I", f"~{unit.name}", reads, shares, run, states, seconds=self.how.seconds("I", unit, 1.0))
            if unit.parameters and part.early and self.mode == "speculate":
                reads = (f"s.{unit.name}", grad)
                cost = self.how.seconds("G", unit, 1.0)
                self._emit("G", f"~{unit.name}", reads, (f"v.{unit.name}",), plain.weight_grad(unit), seconds=cost)

    def _give_start(self, chain: str) -> list[str]:
        """The signal where speculation begins comes from one place, however many consumers the value has."""
        whole = f"{chain}.{self.part.start}"
        self.shares[chain, self.part.start] = [whole]
        return [whole]

    def _speculated(self, unit: Unit) -> tuple[str, ...]:
        """The speculated signal of a unit's output, where there is one."""
        name = self._gradient(SPECULATED, unit.outputs[0])
        return () if name is None else (name,)

    def _compare(self) -> None:
        part = self.part
        exact = self._gradient(EXACT, part.start)
        assert exact is not None
        guess = (f"{SPECULATED}.{part.start}",) if part.predict is not None else ()
        reads = part.compared or (exact, *guess)
        self._emit("C", "accept", reads, ("a.set",), part.compare, part.start_memory if part.compared else ())
        if self.mode == "speculate":
            (start,) = self._give_start(ROWS)
            self._emit("X", "rows", ("a.set", exact, *guess), (start,), kernels.start_rows)

    # --- the rejected samples ------------------------------------------------------------------------------

    def _rows(self, unit: Unit) -> None:
        wanted, saved, share = self._wanted(unit), f"s.{unit.name}", 1.0 - self.how.accepted
        rows, guess = self._gradient(ROWS, unit.outputs[0]), self._speculated(unit)
        assert rows is not None
        if wanted:
            reads = (saved, "a.set", rows, *(guess if kernels.coupled(unit) else ()))
            run, cost = kernels.rows_input_grad(unit, wanted), self.how.seconds("I", unit, share)
            self._emit("I", unit.name, reads, self._shares(ROWS, unit), run, self._weight_states(unit), seconds=cost)
        if unit.parameters:
            reads = (saved, "a.set", rows, *guess)
            if self.part.early and guess:
                run, reads = kernels.mended_weight_grad(unit), (*reads, f"v.{unit.name}")
                cost = self.how.seconds("G", unit, share)
            else:
                run = kernels.late_weight_grad(unit)
                cost = self.how.seconds("G", unit, 1.0 if guess else share)
            self._emit("G", unit.name, reads, (f"w.{unit.name}",), run, seconds=cost)
        self._update_when_made(unit)

    # --- updates -------------------------------------------------------------------------------------------

    def _update_when_made(self, unit: Unit) -> None:
        if not unit.parameters:
            return
        owner = self.weights[unit.name]
        made = self.made.setdefault(owner, [])
        made.append(unit)
        sharing = [n for n, o in self.weights.items() if o == owner and n in self.units.active]
        if len(made) == len(sharing) and not self.how.updates.together:
            self._update(owner, made)

    def _update(self, owner: str, units: Sequence[Unit]) -> None:
        run = self.how.updates.make(owner, [u.parameters for u in units], [WHOLE for _ in units])
        states = tuple(dict.fromkeys(f"W{self.weights[u.name]}" for u in units))
        self._emit("U", owner, [f"w.{u.name}" for u in units], (), run, states, states)

    def _rest(self) -> None:
        made = [unit for units in self.made.values() for unit in units]
        if self.how.updates.together and made:
            self._update("all", made)
            return
        run = self.how.updates.rest([p for unit in made for p in unit.parameters])
        if run is not None:
            self._emit("U", "rest", ("w.loss",), (), lambda frame, tile, args: run(frame, tile, args))
