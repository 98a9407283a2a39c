"""Parts through the engine: whole, or two windows and a straight line through them."""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace

import numpy as np

from convoy.errors import InternalError
from convoy.hardware.description import Hardware
from convoy.hardware.memory.address import Integers, address_fields
from convoy.hardware.step import layout as L
from convoy.hardware.step.parts import Parts, scaled
from convoy.hardware.step.turns import Turns

WHOLE = 60_000  # requests up to which a segment is run whole
WINDOW = 20_000  # requests of the smaller window; the other is twice as large
TRIAL = 9_000  # requests for trying a policy


@dataclass(frozen=True)
class Outcome:
    """What running parts came to, in clocks of one pseudo-channel. ``share``: of the requests that were simulated.

    ``host_end``, ``unit_start``, ``unit_end``: by part, clocks from the beginning. ``figures``: see ``layout``.
    ``commands``: [n, 4] if asked for: host commands, ENTER and LEAVE, and the beginnings of rounds.
    """

    clocks: float
    share: float
    host_end: tuple[float, ...]
    unit_start: tuple[float, ...]
    unit_end: tuple[float, ...]
    figures: tuple[float, ...]
    commands: Integers | None = None

    @property
    def row_hit_rate(self) -> float:
        """Of the host's requests."""
        total = sum(self.figures[L.HITS : L.CONFLICTS + 1])
        return self.figures[L.HITS] / total if total else 0.0


def run_whole(parts: Parts, hardware: Hardware, turns: Turns, *, refresh: bool = True, commands: int = 0) -> Outcome:
    """All of ``parts`` through the engine. ``commands``: how many to record."""
    from convoy.hardware.memory.layout import TRACED, new_state
    from convoy.hardware.step.engine import run_segment

    apart = turns.name == "partition"
    memory = hardware.memory
    if apart:  # the host's half of the banks
        memory = replace(memory, banks_per_group=memory.banks_per_group // 2, rows=memory.rows * 2)
    state = new_state(memory, refresh=refresh)
    units = parts.units.copy()
    if apart:
        units[:, L.ROUNDS] *= 2
        units[:, L.FIXED] = 0
    host_end = np.full(len(parts.host), -1, np.int64)
    unit_start, unit_end = np.full(len(units), -1, np.int64), np.full(len(units), -1, np.int64)
    out = np.zeros(L.RESULTS, np.int64)
    trace = np.zeros(4 * commands, np.int64)
    settings = _settings(hardware, turns)
    if apart:
        settings[L.FIELDS : L.FIELDS + 8] = astuple(address_fields(memory, hardware.address_map))
        settings[L.PER_GROUP_BANKS] = memory.banks_per_group
    run_segment(state, settings, parts.host, units, host_end, unit_start, unit_end, out, trace)
    if out[L.END] < 0:
        raise InternalError("the simulated channel came to a standstill")
    recorded = trace.reshape(-1, 4)[: int(state[TRACED])] if commands else None
    return Outcome(
        float(out[L.END]),
        1.0,
        tuple(map(float, host_end)),
        tuple(map(float, unit_start)),
        tuple(map(float, unit_end)),
        tuple(map(float, out)),
        recorded,
    )


def run(parts: Parts, hardware: Hardware, turns: Turns, *, whole: int = WHOLE, window: int = WINDOW) -> Outcome:
    """``parts`` through the engine: whole where they have at most ``whole`` requests; else two windows, of ``window``
    requests and twice as many, and every figure on the straight line through them."""
    if parts.requests <= whole:
        return run_whole(parts, hardware, turns)
    first, second = window / parts.requests, 2 * window / parts.requests
    small, large = (run_whole(scaled(parts, factor), hardware, turns) for factor in (first, second))

    def line(low: float, high: float) -> float:
        return high + (high - low) * (1 - second) / (second - first)

    def lines(low: tuple[float, ...], high: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(line(a, b) for a, b in zip(low, high, strict=True))

    return Outcome(
        line(small.clocks, large.clocks),
        second,
        lines(small.host_end, large.host_end),
        lines(small.unit_start, large.unit_start),
        lines(small.unit_end, large.unit_end),
        lines(small.figures, large.figures),
    )


def try_out(parts: Parts, hardware: Hardware, turns: Turns, *, most: int = TRIAL) -> float:
    """Clocks of ``parts`` by small windows, ``most`` requests in all, for choosing among policies."""
    return run(parts, hardware, turns, whole=most, window=most // 3).clocks


def _settings(hardware: Hardware, turns: Turns) -> Integers:
    memory, units = hardware.memory, hardware.units
    settings = np.zeros(L.PARAMETERS, np.int64)
    settings[L.POLICY], settings[L.EXCLUSIVE] = turns.code, turns.name != "partition"
    settings[L.MARK], settings[L.MIN_TURN], settings[L.TURN] = turns.mark, turns.minimum, turns.turn
    staging = hardware.host.staging_bytes // hardware.channels // memory.burst_bytes
    settings[L.STAGING] = min(max(staging, 1), L.RING // 4)
    settings[L.ENTER], settings[L.ENTER_PROGRAMMED] = units.enter, units.enter_programmed
    # However cheap the switch: rows of the units have to be closed before the host can open its own.
    closing = memory.WL + memory.burst_clocks + memory.tWR + memory.tRP + memory.tRCDRD
    settings[L.LEAVE], settings[L.PROGRAM_NET] = max(units.leave, closing), units.program_net
    settings[L.READ_LATENCY], settings[L.WRITE_LATENCY] = memory.read_latency, memory.WL + memory.burst_clocks
    settings[L.FIELDS : L.FIELDS + 8] = astuple(address_fields(memory, hardware.address_map))
    settings[L.BURST_SHIFT] = memory.burst_bytes.bit_length() - 1
    settings[L.PER_GROUP_BANKS] = memory.banks_per_group
    settings[L.ROW_LATENCY], settings[L.CLOSE_LATENCY] = memory.tRCDRD, memory.tRP + memory.tRCDRD
    return settings
