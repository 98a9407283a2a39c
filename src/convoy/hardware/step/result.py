"""What a simulated step came to: rows per segment, totals, tables, JSON, and a timeline as events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from convoy.events.event import Event
from convoy.hardware.description import Hardware
from convoy.hardware.step import layout as L
from convoy.hardware.step.parts import Parts
from convoy.hardware.step.turns import Turns
from convoy.hardware.step.window import Outcome
from convoy.hardware.tasks import Segment, Step
from convoy.schedule.plan import columns


@dataclass(frozen=True)
class Row:
    """One segment: a layer's CONV tasks of one phase with the non-CONV tasks inside. Clocks are the memory's;
    "compute", "host_memory" and "units" are what each would take alone and without waiting. ``simulated``: the share of
    the requests that were simulated (1: all; else two windows and a straight line)."""

    name: str
    phase: str
    clocks: float
    serial_clocks: float
    bound_clocks: float
    compute: float
    host_memory: float
    units: float
    turns: float
    switching: float
    stalls: float
    stalls_away: float
    host_row_hits: float
    unit_row_hits: float
    groups: tuple[float, ...]
    policy: str
    simulated: float
    bound_by: str


@dataclass(frozen=True)
class Simulation:
    """A training step on modelled hardware under one turn policy, and what it is compared with. Seconds are simulated
    seconds of one step; joules those of the whole machine."""

    step: Step
    hardware: Hardware
    turns: str
    rows: tuple[Row, ...]
    seconds: float
    serial_seconds: float
    host_alone_seconds: float
    bound_seconds: float
    joules: float
    serial_joules: float
    host_alone_joules: float
    timeline: tuple[tuple[Segment, Parts, Outcome, Turns], ...] = field(repr=False, default=())

    @property
    def speedup(self) -> float:
        """Over serial host and units."""
        return self.serial_seconds / self.seconds

    @property
    def seconds_where_it_helps(self) -> float:
        """With every layer that is slower than serial done serially instead."""
        clocks = sum(min(row.clocks, row.serial_clocks) for row in self.rows)
        return clocks * 1e-9 * self.hardware.memory.clock_ns

    @property
    def bound_speedup(self) -> float:
        return self.serial_seconds / self.bound_seconds

    @property
    def way_to_bound(self) -> float:
        """The share of what overlapping could save at most that this policy saves."""
        most = self.serial_seconds - self.bound_seconds
        return (self.serial_seconds - self.seconds) / most if most > 0 else 1.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; units are in the names, clocks are those of ``clock_ns``."""
        return {
            "model": self.step.model,
            "batch_size": self.step.batch_size,
            "hardware": self.hardware.name,
            "clock_ns": self.hardware.memory.clock_ns,
            "turns": self.turns,
            "seconds": self.seconds,
            "serial_seconds": self.serial_seconds,
            "host_alone_seconds": self.host_alone_seconds,
            "bound_seconds": self.bound_seconds,
            "seconds_where_it_helps": self.seconds_where_it_helps,
            "speedup_over_serial": self.speedup,
            "bound_speedup": self.bound_speedup,
            "share_of_the_way_to_the_bound": self.way_to_bound,
            "joules": self.joules,
            "serial_joules": self.serial_joules,
            "host_alone_joules": self.host_alone_joules,
            "notes": list(self.step.notes),
            "layers": [asdict(row) for row in self.rows],
        }

    def table(self, *, layers: bool = True) -> str:
        """For a person: one line per layer and phase, then the totals."""
        us = self.hardware.memory.clock_ns / 1e3
        head = (
            *("layer", "phase", "µs", "serial", "bound", "bound by", "compute", "host mem", "units", "turns"),
            *("switching", "stalls", "host hits", "unit hits", "groups"),
        )
        lines: list[tuple[str, ...]] = []
        for row in self.rows if layers else ():
            times = [f"{t * us:.1f}" for t in (row.clocks, row.serial_clocks, row.bound_clocks)]
            loads = [f"{t * us:.1f}" for t in (row.compute, row.host_memory, row.units)]
            lost = (f"{row.turns:.0f}", f"{row.switching * us:.1f}", f"{row.stalls * us:.1f}")
            hits = (_percent(row.host_row_hits), _percent(row.unit_row_hits))
            lines.append((row.name, row.phase, *times, row.bound_by, *loads, *lost, *hits, str(len(row.groups))))
        text = columns(head, lines) + "\n\n" if lines else ""
        return text + self.summary()

    def summary(self) -> str:
        """The totals."""
        what = f"{self.step.model}, batch {self.step.batch_size}, {self.hardware.name}"
        rows = [
            ("host alone", self.host_alone_seconds, self.host_alone_joules),
            ("serial host and units", self.serial_seconds, self.serial_joules),
            (f"turns: {self.turns}", self.seconds, self.joules),
            ("bound", self.bound_seconds, None),
        ]
        lines = [
            (name, f"{1e3 * s:.3f}", f"{self.serial_seconds / s:.3f}", "–" if j is None else f"{j:.3f}")
            for name, s, j in rows
        ]
        reached = f"{100 * self.way_to_bound:.0f} % of what overlapping could save at most"
        notes = "".join(f"\nnote: {note}" for note in self.step.notes)
        table = columns(("one training step", "ms", "times serial", "J"), lines)
        return f"{what}\n{table}\n{reached}; ms are simulated, one clock is {self.hardware.memory.clock_ns:g} ns{notes}"

    def events(self) -> Iterator[Event]:
        """The step as actions on the lanes "host" and "units" (one pseudo-channel; all are alike), and the turn policy
        of each segment as a decision. Parts of a segment of which windows were run lie on the extrapolated times."""
        yield Event("run", "begin", data={"model": self.step.model, "hardware": self.hardware.name})
        clock = 1e-9 * self.hardware.memory.clock_ns
        offset = 0.0
        for segment, parts, outcome, turns in self.timeline:
            cause = {"cause": "plan", "policy": str(turns), "groups": list(parts.groups)}
            yield Event("decision", f"turns of {segment.name}", offset * clock, offset * clock, data=cause)
            start = 0.0
            for number, (owner, end) in enumerate(zip(parts.host_owners, outcome.host_end, strict=True)):
                task = segment.host[owner]
                row = parts.host[number]
                data = {"kind": task.phase, "subject": task.name, "part": number}
                data |= {"bytes": int((row[L.READS] + row[L.WRITES]) * self.hardware.memory.burst_bytes)}
                if end > start:
                    begin, finish = (offset + start) * clock, (offset + end) * clock
                    yield Event("action", f"{task.name} {task.phase}", begin, finish, "host", data=data)
                    start = end
            before = 0.0
            for number, owner in enumerate(parts.owners):
                unit = segment.units[owner]
                begin, finish = max(outcome.unit_start[number], before), outcome.unit_end[number]
                if finish > begin:
                    data = {
                        "kind": unit.phase,
                        "subject": unit.name,
                        "part": number,
                        "rounds": int(parts.units[number, 0]),
                    }
                    name = f"{unit.name} {unit.phase}"
                    yield Event("action", name, (offset + begin) * clock, (offset + finish) * clock, "units", data=data)
                    before = finish
            offset += outcome.clocks
        yield Event("run", "end", offset * clock, offset * clock)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
