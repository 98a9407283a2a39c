"""What a memory is (sizes and timing of one pseudo-channel) and its timing rules as rows of data.

All times are clocks of the memory's command clock (``clock_ns``). Names are the standard's (JEDEC JESD235, HBM): RL and
WL read and write latency, RCD row to column, RP precharge, RAS row active, RC row cycle, CCD column to column, RRD row
to row, FAW four-activation window, WR write recovery, WTR write to read, RTP read to precharge, RTW read to write,
REFI refresh interval, RFC refresh cycle; _S is "other bank group", _L "same bank group".
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from enum import IntEnum
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from convoy.errors import OptionError

PRESETS = ("common", "wide")


class Command(IntEnum):
    """Commands on the bus. ACT and PRE are row commands, READ and WRITE column commands; REFRESH is for all banks.

    Those of units in memory go to one bank of every unit at once: in their place of a bank stands which (0, 1 ...).
    ENTER and LEAVE begin and end the time in which the units hold the channel.
    """

    ACT = 0
    PRE = 1
    READ = 2
    WRITE = 3
    REFRESH = 4
    PIM_ACT = 5
    PIM_PRE = 6
    PIM_READ = 7
    PIM_WRITE = 8
    ENTER = 9
    LEAVE = 10


Scope = Literal["bank", "group", "channel"]


@dataclass(frozen=True, slots=True)
class Rule:
    """At least ``clocks`` between ``before`` and ``after`` on the same bank, in the same bank group, or anywhere in the
    channel. ``window`` > 1: between an ``after`` and the ``window``-th ``before`` counted back (tFAW: 4)."""

    name: str
    before: Command
    after: Command
    scope: Scope
    clocks: int
    window: int = 1


@dataclass(frozen=True, slots=True)
class Memory:
    """One pseudo-channel: sizes in bytes, times in clocks, and the controller's queues in requests.

    ``write_high``: with so many writes waiting the controller turns to writing; at ``write_low`` it turns back.
    """

    name: str
    source: str
    clock_ns: float
    burst_bytes: int
    burst_clocks: int
    bank_groups: int
    banks_per_group: int
    row_bytes: int
    rows: int
    RL: int
    WL: int
    tRCDRD: int
    tRCDWR: int
    tRP: int
    tRAS: int
    tRC: int
    tCCD_S: int
    tCCD_L: int
    tRRD_S: int
    tRRD_L: int
    tFAW: int
    tWR: int
    tWTR_S: int
    tWTR_L: int
    tRTP: int
    tRTW: int
    tREFI: int
    tRFC: int
    read_queue: int = 32
    write_queue: int = 32
    write_high: int = 28
    write_low: int = 8

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("name", "source"):
                continue
            whole = field.name != "clock_ns"
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                raise _refusal(field.name, value, "must be a whole number" if whole else "must be a number")
            least = 0 if field.name in ("write_low", "tREFI", "tRFC", "tWTR_S", "tWTR_L", "tRTP") else 1
            if value < least or (not whole and value <= 0):
                raise _refusal(field.name, value, f"must be at least {least}" if whole else "must be above 0")
        for name in ("burst_bytes", "bank_groups", "banks_per_group", "row_bytes", "rows"):
            value = getattr(self, name)
            if value & (value - 1):
                raise _refusal(name, value, "must be a power of two, because addresses are cut at bits")
        self._check_order()

    def _check_order(self) -> None:
        """What the standard's definitions imply among the values."""
        pairs = (
            ("tCCD_L", "tCCD_S", "columns of one bank group cannot follow faster than those of two"),
            ("tRRD_L", "tRRD_S", "rows of one bank group cannot open faster than those of two"),
            ("tWTR_L", "tWTR_S", "a bank group cannot turn from write to read faster than another takes over"),
            ("tRAS", "tRCDRD", "a row cannot close before it can be read"),
            ("write_high", "write_low", "the controller would never turn to writing"),
            ("write_queue", "write_high", "the queue is full before the mark is reached"),
            ("row_bytes", "burst_bytes", "a row holds at least one burst"),
        )
        for larger, smaller, why in pairs:
            high, low = getattr(self, larger), getattr(self, smaller)
            if high < low or (larger == "write_high" and high == low):
                raise OptionError(
                    f"memory {self.name} has {larger} = {high} below {smaller} = {low}: {why}",
                    hint=f"raise {larger} or lower {smaller}",
                )
        if self.tRC < self.tRAS + self.tRP:
            raise OptionError(
                f"memory {self.name} has tRC = {self.tRC} below tRAS + tRP = {self.tRAS + self.tRP}: a row is open for "
                "tRAS and takes tRP to close",
                hint=f"set tRC to {self.tRAS + self.tRP} or more",
            )
        if self.tREFI and self.tREFI <= self.tRFC + self.tRP + self.tRC:
            raise OptionError(
                f"memory {self.name} refreshes every tREFI = {self.tREFI} clocks for tRFC = {self.tRFC}: "
                "no time is left",
                hint="raise tREFI; 0 turns refresh off",
            )
        if max(self.read_queue, self.write_queue) > 64:
            raise _refusal("read_queue and write_queue", max(self.read_queue, self.write_queue), "may be 64 at most")
        if self.banks > 64:
            raise _refusal("bank_groups x banks_per_group", self.banks, "may be 64 at most")

    @property
    def banks(self) -> int:
        return self.bank_groups * self.banks_per_group

    @property
    def columns(self) -> int:
        """Bursts in a row."""
        return self.row_bytes // self.burst_bytes

    @property
    def peak_bytes_per_clock(self) -> float:
        return self.burst_bytes / self.burst_clocks

    @property
    def bytes(self) -> int:
        return self.banks * self.rows * self.row_bytes

    @property
    def read_latency(self) -> int:
        """Clocks from a read command to the last byte of its data."""
        return self.RL + self.burst_clocks

    def rules(self) -> tuple[Rule, ...]:
        """Every timing rule between two commands of this memory. Rules for all banks of the channel hold for banks of
        the same group too."""
        act, pre, read, write, refresh = tuple(Command)[:5]
        burst, write_end = self.burst_clocks, self.WL + self.burst_clocks
        return (
            Rule("tRCDRD", act, read, "bank", self.tRCDRD),
            Rule("tRCDWR", act, write, "bank", self.tRCDWR),
            Rule("tRAS", act, pre, "bank", self.tRAS),
            Rule("tRC", act, act, "bank", self.tRC),
            Rule("tRP", pre, act, "bank", self.tRP),
            Rule("tRTP", read, pre, "bank", self.tRTP),
            Rule("WL + burst + tWR", write, pre, "bank", write_end + self.tWR),
            Rule("tRRD_L", act, act, "group", self.tRRD_L),
            Rule("tRRD_S", act, act, "channel", self.tRRD_S),
            Rule("tFAW", act, act, "channel", self.tFAW, window=4),
            Rule("tCCD_L, reads", read, read, "group", self.tCCD_L),
            Rule("tCCD_L, writes", write, write, "group", self.tCCD_L),
            Rule("tCCD_S, reads", read, read, "channel", max(self.tCCD_S, burst)),
            Rule("tCCD_S, writes", write, write, "channel", max(self.tCCD_S, burst)),
            Rule("tRTW", read, write, "channel", self.tRTW),
            Rule("WL + burst + tWTR_L", write, read, "group", write_end + self.tWTR_L),
            Rule("WL + burst + tWTR_S", write, read, "channel", write_end + self.tWTR_S),
            Rule("tRP, refresh", pre, refresh, "channel", self.tRP),
            Rule("tRFC", refresh, act, "channel", self.tRFC),
            Rule("tRFC, refresh", refresh, refresh, "channel", self.tRFC),
        )


def _refusal(name: str, value: object, why: str) -> OptionError:
    return OptionError(f"the memory's {name} is {value!r}, but {why}", hint="see the presets for values of real parts")


def memory_from(table: Mapping[str, Any], where: str = "the memory") -> Memory:
    """A memory from a table as TOML gives it. Keys are the fields of ``Memory``; ``like`` names a preset from which
    the others are taken. Raises OptionError for what is missing, unknown or impossible."""
    table = dict(table)
    known = {field.name: field for field in fields(Memory)}
    if "like" in table:
        base = load_memory(str(table.pop("like")))
        table = {name: getattr(base, name) for name in known} | {"source": f"like {base.name}"} | table
    for key in table:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            raise OptionError(
                f"{where} has an unknown key {key!r}",
                hint=f"did you mean {near[0]}?" if near else f"the keys are {', '.join(known)}",
            )
    required = ("name", "source", *list(known)[2 : list(known).index("read_queue")])
    missing = [name for name in required if name not in table]
    if missing:
        raise OptionError(
            f"{where} does not say {', '.join(missing)}", hint='like = "common" takes the rest from there'
        )
    return Memory(**table)


def load_memory(name: str) -> Memory:
    """A memory by the name of a preset or the path of a TOML file with a table [memory] (or the keys alone)."""
    if name in PRESETS:
        text = files("convoy.hardware.memory").joinpath("presets", f"{name}.toml").read_text(encoding="utf-8")
    elif name.endswith(".toml"):
        try:
            text = Path(name).read_text(encoding="utf-8")
        except OSError as problem:
            raise OptionError(
                f"{name} cannot be read: {problem.strerror}", hint="give the path of a TOML file"
            ) from None
    else:
        raise OptionError(
            f"there is no memory {name!r}", hint=f"the presets are {', '.join(PRESETS)}; or give a path ending in .toml"
        )
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        raise OptionError(f"{name} is no TOML: {problem}", hint="mend the file") from None
    return memory_from(table.get("memory", table), name)
