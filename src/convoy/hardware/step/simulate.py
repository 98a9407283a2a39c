"""A training step on modelled hardware: host alone, serial, and both sides taking turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from convoy.errors import OptionError
from convoy.hardware.description import Hardware, load_hardware
from convoy.hardware.pim.kernels import Kernel
from convoy.hardware.step import layout as L
from convoy.hardware.step.improve import SHARES, SLACKS, bound, loads, rearranged, step_bound
from convoy.hardware.step.parts import Parts, build, equal
from convoy.hardware.step.result import Row, Simulation
from convoy.hardware.step.turns import TurnName, Turns, candidates
from convoy.hardware.step.window import WHOLE, Outcome, run, try_out
from convoy.hardware.tasks import Segment, Step, training_step

if TYPE_CHECKING:
    from torch import nn

GROUPS = 4


def simulate(
    model: nn.Module | Step,
    hardware: Hardware | str = "v100-pim4",
    batch_size: int = 32,
    *,
    turns: TurnName = "queue",
    groups: int = GROUPS,
    image: Sequence[int] = (3, 224, 224),
    reread: bool = True,
    whole: int = WHOLE,
) -> Simulation:
    """One training step of ``model`` on ``hardware`` (a description, a preset's name, or the path of a TOML file).

    ``model``: an ordinary module that takes images [batch_size, *image], or the tasks of a step. It is captured, never
    run. ``turns``: see ``TURNS``. ``groups``: of output channels (``planned`` chooses them itself). ``reread``: inputs
    are read again for every group. ``whole``: segments of at most so many requests are run whole, longer ones by two
    windows. Raises OptionError for what makes no sense, ModelError for what cannot be captured.
    """
    described = load_hardware(hardware) if isinstance(hardware, str) else hardware
    choices = candidates(turns, described.units)
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1:
        raise OptionError(f"groups is {groups!r}, but must be a whole number of 1 or more", hint="leave it out for 4")
    step = model if isinstance(model, Step) else tasks_of(model, batch_size, image)
    return _Simulator(described, groups, reread, whole).run(step, turns, choices)


def tasks_of(model: nn.Module, batch_size: int, image: Sequence[int] = (3, 224, 224)) -> Step:
    """The tasks of a training step of ``model`` on images [batch_size, *image]."""
    import torch

    from convoy.graph.capture import capture

    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise OptionError(f"batch_size is {batch_size!r}", hint="give a whole number of 1 or more")
    example = next((p for p in model.parameters()), torch.empty(0))
    return training_step(capture(model, (torch.empty(batch_size, *image, dtype=example.dtype, device=example.device),)))


class _Simulator:
    """Remembers outcomes of equal parts: networks repeat their layers."""

    def __init__(self, hardware: Hardware, groups: int, reread: bool, whole: int) -> None:
        self.hardware, self.groups, self.reread, self.whole = hardware, groups, reread, whole
        self.known: dict[tuple[bytes, bytes, Turns], Outcome] = {}
        self.tried: dict[tuple[bytes, bytes, Turns], float] = {}
        self.chosen: dict[tuple[bytes, bytes], tuple[Parts, Turns]] = {}

    def run(self, step: Step, turns: TurnName, choices: Sequence[Turns]) -> Simulation:
        hardware = self.hardware
        serial = {id(s): self._outcome(self._serial(s), Turns("serial")) for s in step.segments}
        serial_clocks = sum(o.clocks for o in serial.values())
        alone_clocks = sum(self._alone(segment) for segment in step.segments)
        taken = self._order(step, choices[0]) if turns == "planned" else step
        rows, timeline, clocks, joules = [], [], 0.0, 0.0
        for segment in taken.segments:
            parts, policy = self._choose(segment, turns, choices)
            outcome = self._outcome(parts, policy)
            beside = serial.get(id(segment)) or self._outcome(self._serial(segment), Turns("serial"))
            rows.append(_row(segment, parts, outcome, policy, beside.clocks, hardware))
            timeline.append((segment, parts, outcome, policy))
            clocks += outcome.clocks
        second = 1e-9 * hardware.memory.clock_ns
        joules = energy(taken, hardware, [p for _, p, _, _ in timeline], clocks * second)
        parts_serial = [self._serial(segment) for segment in step.segments]
        return Simulation(
            step=taken,
            hardware=hardware,
            turns=turns,
            rows=tuple(rows),
            seconds=clocks * second,
            serial_seconds=serial_clocks * second,
            host_alone_seconds=alone_clocks * second,
            bound_seconds=step_bound(step, hardware) * second,
            joules=joules,
            serial_joules=energy(step, hardware, parts_serial, serial_clocks * second),
            host_alone_joules=energy(step, hardware, parts_serial, alone_clocks * second, units=False),
            timeline=tuple(timeline),
        )

    def _serial(self, segment: Segment) -> Parts:
        return build(segment, self.hardware, equal(1), serial=True)

    def _alone(self, segment: Segment) -> float:
        """Clocks if the host does all: convolutions through the model, the rest by bandwidth."""
        conv = Segment(segment.name, segment.phase, segment.host)
        clocks = self._outcome(self._serial(conv), Turns("serial")).clocks if segment.host else 0.0
        moved = sum(task.host_elements for task in segment.units) * self.hardware.element_bytes
        seconds = moved / (self.hardware.bytes_per_second * self.hardware.host.bandwidth_share)
        return clocks + seconds * self.hardware.clocks_per_second

    def _order(self, step: Step, policy: Turns) -> Step:
        """``step``, or the rearranged one that takes least time on small windows in four groups."""

        def clocks(order: Step) -> float:
            total = 0.0
            for segment in order.segments:
                serial = not segment.units or not segment.host
                parts = build(segment, self.hardware, equal(GROUPS), serial=serial, reread=self.reread)
                total += self._try(parts, policy)
            return total

        return min([step, *(rearranged(step, self.hardware, slack) for slack in SLACKS)], key=clocks)

    def _choose(self, segment: Segment, turns: TurnName, choices: Sequence[Turns]) -> tuple[Parts, Turns]:
        """The parts and the policy of a segment: what is best on a window, where there is a choice."""
        if turns == "serial" or not segment.units or not segment.host:
            return self._serial(segment), Turns("serial")
        if turns != "planned":
            parts = build(
                segment, self.hardware, equal(self.groups), serial=self.groups == 1, reread=self.reread,
                copies=turns == "partition",
            )  # fmt: skip
            return parts, min(choices, key=lambda policy: self._try(parts, policy)) if len(choices) > 1 else choices[0]
        serial = self._serial(segment)
        key = (serial.host.tobytes(), serial.units.tobytes())
        if key not in self.chosen:
            options = [(serial, Turns("serial"))]
            for shares in SHARES:
                options.append((build(segment, self.hardware, shares, serial=False, reread=self.reread), choices[0]))
            # What looks best on small windows is run as exactly as everything else; serial is always among them.
            best = sorted(options[1:], key=lambda option: self._try(*option))[:2]
            self.chosen[key] = min([options[0], *best], key=lambda option: self._outcome(*option).clocks)
        return self.chosen[key]

    def _try(self, parts: Parts, policy: Turns) -> float:
        key = (parts.host.tobytes(), parts.units.tobytes(), policy)
        if key not in self.tried:
            self.tried[key] = try_out(parts, self.hardware, policy)
        return self.tried[key]

    def _outcome(self, parts: Parts, policy: Turns) -> Outcome:
        key = (parts.host.tobytes(), parts.units.tobytes(), policy)
        if key not in self.known:
            self.known[key] = run(parts, self.hardware, policy, whole=self.whole)
        return self.known[key]


def energy(step: Step, hardware: Hardware, parts: Sequence[Parts], seconds: float, *, units: bool = True) -> float:
    """Joules of a step: the host's power while it computes and while it does not, data across the interface, data
    between banks and units, the units' operations. ``units=False``: the host does all."""
    e = hardware.energy
    computing = sum(hardware.host_seconds(task) for s in step.segments for task in s.host)
    outside = float(sum(p.requests for p in parts)) * hardware.memory.burst_bytes * hardware.channels
    kernels = [(k, n) for s in step.segments for task in s.units for k, n in task.kernels]
    inside = operations = 0.0
    if units:
        inside = sum(k.bytes_per_element(hardware.element_bytes) * n for k, n in kernels)
        operations = sum(k.column_commands * n for k, n in kernels)
    else:
        moved = sum(task.host_elements for s in step.segments for task in s.units) * hardware.element_bytes
        outside += moved
        computing += moved / (hardware.bytes_per_second * hardware.host.bandwidth_share)
    busy = min(seconds, computing)
    host = e.busy_watts * busy + e.idle_watts * (seconds - busy)
    bits = 8e-12 * e.memory_picojoules_per_bit * (outside + e.inner_share * inside)
    return host + bits + 1e-12 * e.unit_picojoules * operations


def _row(
    segment: Segment, parts: Parts, outcome: Outcome, policy: Turns, serial_clocks: float, hardware: Hardware
) -> Row:
    compute, memory, _ = loads(segment, hardware)
    memory = max(memory, float(parts.requests * hardware.memory.burst_clocks))
    figures = outcome.figures
    units, switching = figures[L.UNITS_BUSY], figures[L.SWITCHING]
    return Row(
        name=segment.name,
        phase=segment.phase,
        clocks=outcome.clocks,
        serial_clocks=serial_clocks,
        bound_clocks=bound([segment], hardware),
        compute=compute,
        host_memory=memory,
        units=units,
        turns=figures[L.TURNS],
        switching=switching,
        stalls=figures[L.STALL],
        stalls_away=figures[L.STALL_AWAY],
        host_row_hits=outcome.row_hit_rate,
        unit_row_hits=_unit_row_hits([k for task in segment.units for k, _ in task.kernels]),
        groups=parts.groups,
        policy=str(policy),
        simulated=outcome.share,
        bound_by=_bound_by(outcome.clocks, compute, memory, units, switching),
    )


def _bound_by(clocks: float, compute: float, memory: float, units: float, switching: float) -> str:
    """What fills the time: one of the loads, if it takes nine tenths of it, or the memory by all that go through it;
    else the two sides wait for each other."""
    if compute >= 0.9 * clocks:
        return "compute"
    if memory + units + switching >= 0.9 * clocks:
        return max((memory, "host memory"), (units, "units"), (switching, "turns"))[1]
    return "order"


def _unit_row_hits(kernels: Sequence[Kernel]) -> float:
    """Column commands of the units that find their row open, as a share: one of each step may open one."""
    columns = sum(kernel.column_commands * 8 for kernel in kernels)
    opened = sum(len({s for kind, s, _ in kernel.steps if kind != "X"}) for kernel in kernels)
    return 1 - opened / columns if columns else 0.0
