"""Element-wise kernels for units in memory, as the column commands of one round.

A *round* fills the registers of every unit once from one of its banks. It is a list of steps; each step is as many
column commands as there are registers. ``R`` reads a stream from the bank and carries out an instruction, ``W`` writes
the registers to a stream, ``X`` is an instruction on registers only (a column command all the same: it is what makes
units go on). Streams lie in rows of their own, so that going from one to the other changes the row.

Lanes are channels (feature maps lie as samples x pixels x channels). So what belongs to a channel (scale, offset, sums)
is a register, the elements of a window are in different columns and never in different lanes, and a group of output
channels is a range of columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from convoy.errors import OptionError
from convoy.hardware.memory.timing import Memory

Kind = Literal["R", "W", "X"]
Step = tuple[Kind, str, int]  # kind, stream, how many times the registers


@dataclass(frozen=True, slots=True)
class Kernel:
    """``steps`` of one round, in order; ``counts``: what the elements of a round are ("input" or "output" elements of
    the layer); ``sums``: registers per channel block that the host collects at the end (partial sums); ``product``:
    whether HBM-PIM's published instructions (MOV with ReLU, ADD, MUL, MAC, MAD) suffice; ``why``: how it is derived."""

    name: str
    steps: tuple[Step, ...]
    why: str
    product: bool = True
    sums: int = 0

    @property
    def column_commands(self) -> int:
        """Per register."""
        return sum(times for _, _, times in self.steps)

    def bytes_per_element(self, element_bytes: int) -> int:
        """Moved between banks and units, per element of a round."""
        return element_bytes * sum(times for kind, _, times in self.steps if kind != "X")


def _kernel(name: str, text: str, why: str, *, product: bool = True, sums: int = 0) -> Kernel:
    """``text``: steps as ``R:x`` or ``4R:x`` apart by spaces."""
    steps: list[Step] = []
    for word in text.split():
        head, _, stream = word.partition(":")
        kind: Kind = "R" if head[-1] == "R" else "W" if head[-1] == "W" else "X"
        steps.append((kind, stream, int(head[:-1] or 1)))
    return Kernel(name, tuple(steps), why, product, sums)


KERNELS = {
    kernel.name: kernel
    for kernel in (
        _kernel("add", "R:a R:b W:y", "MOV a; ADD b; MOV to y"),
        _kernel("mul", "R:a R:b W:y", "MOV a; MUL b; MOV to y (also a dropout mask)"),
        _kernel("relu", "R:x W:y", "MOV with ReLU; MOV to y"),
        _kernel("copy", "R:x W:y", "MOV; MOV to y (concatenation, where the next layer wants one tensor)"),
        _kernel("bn", "R:x X: W:y", "MUL scale; ADD offset; MOV to y: BatchNorm as multiply-add"),
        _kernel("bn_relu", "R:x X: W:y", "as bn, with ReLU in the last MOV"),
        _kernel("bn_statistics", "R:x X: X:", "MOV x; ADD to the sum; MAC to the sum of squares", sums=2),
        _kernel(
            "bn_backward_sums",
            "R:g X: R:x",
            "MOV g; ADD to the sum of g; MAC g·x to the sum of g·x (the means of x are taken off by the host)",
            sums=2,
        ),
        _kernel("bn_backward", "R:g R:x X: W:d", "MUL a·g; MAC + b·x; ADD c; MOV to d: dx = a·g + b·x + c per channel"),
        _kernel("relu_backward", "R:g R:y W:d", "MOV g; select where y > 0; MOV to d", product=False),
        _kernel("relu6", "R:x X: W:y", "MOV with ReLU; minimum with 6; MOV to y", product=False),
    )
}
"""Kernels without parameters. What ``product=False`` needs besides the published instructions is a select or a maximum:
an extension, as published designs with one unit per four banks have for pooling."""


@lru_cache(maxsize=256)
def pooling(kind: Literal["max", "average"], direction: Literal["forward", "backward"], window: int, rows: int,
            overlapping: bool) -> Kernel:  # fmt: skip
    """A pooling kernel; its elements are outputs of the layer. ``window``: elements of a window, in ``rows`` rows of
    pixels, each in a memory row of its own. ``overlapping``: windows share elements, so that backward adds to what is
    there."""
    if window < 1 or rows < 1 or window % rows:
        raise OptionError(f"a window of {window} elements in {rows} rows is none", hint="give rows x columns")
    wide = window // rows
    reads = [f"{wide}R:x{row}" for row in range(rows)]
    if direction == "forward":
        if kind == "max":
            text, why = " ".join([*reads, "W:y"]), "MOV the first, maximum with the others, MOV to y"
        else:
            text, why = " ".join([*reads, "X:", "W:y"]), "MOV the first, ADD the others, MUL 1/n, MOV to y"
        return _kernel(f"{kind}_pool {window}", text, why, product=kind == "average")
    parts = ["R:g", "R:y"] if kind == "max" else ["R:g", "X:"]
    for row in range(rows):
        if kind == "max":
            parts += [f"{wide}R:x{row}", f"{wide}X:"]
        if overlapping:
            parts.append(f"{wide}R:d{row}")
        parts.append(f"{wide}W:d{row}")
    why = (
        "MOV g, y; for each element of the window MOV x, select g where x = y, "
        if kind == "max"
        else "MOV g; MUL 1/n; for each element of the window "
    ) + ("ADD what is there, MOV to d" if overlapping else "MOV to d")
    return _kernel(f"{kind}_pool_backward {window}", " ".join(parts), why, product=kind == "average")


@lru_cache(maxsize=1024)
def round_clocks(kernel: Kernel, memory: Memory, registers: int) -> int:
    """Clocks from the first column command of a round to that of the next round of the same sort, by the timing rules.

    Columns are paced by tCCD_L. Another stream means another row: close, open, and on to the first column. From a write
    to the next round's read the write-to-read time passes. Rows of the bank that comes next are opened meanwhile.
    """
    write_end = memory.WL + memory.burst_clocks
    clock, last = 0, ""  # of the first column command of the step at hand; kind of the command before
    row = kernel.steps[0][1]
    pace = max(memory.tCCD_L, memory.burst_clocks)
    opened = 0 - memory.tRCDRD
    for number, (kind, stream, times) in enumerate(kernel.steps):
        if number:
            step = _gap(last, kind, memory, pace)
            if stream and stream != row:
                done = write_end + memory.tWR if last == "W" else memory.tRTP
                closed = max(clock + done, opened + memory.tRAS)
                opened = max(closed + memory.tRP, opened + memory.tRC)
                step = max(step, opened + (memory.tRCDWR if kind == "W" else memory.tRCDRD) - clock)
                row = stream
            clock += step
        clock += pace * (times * registers - 1)
        last = "W" if kind == "W" else "R"
    return clock + _gap(last, "R", memory, pace)


def _gap(last: str, following: str, memory: Memory, pace: int) -> int:
    """Clocks between two column commands of the units in one row each."""
    if last == "W" and following != "W":
        return max(pace, memory.WL + memory.burst_clocks + memory.tWTR_L)
    if last == "R" and following == "W":
        return max(pace, memory.tRTW)
    return pace
