"""Which bank, row and column an address means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from convoy.errors import OptionError
from convoy.hardware.memory.timing import Memory

Integers: TypeAlias = NDArray[np.int64]
MapName = Literal["col", "bg"]
MAPS: tuple[MapName, ...] = ("col", "bg")


@dataclass(frozen=True, slots=True)
class Fields:
    """Where the bits of an address lie: for each field its lowest bit and its number of values minus one."""

    column_shift: int
    column_mask: int
    group_shift: int
    group_mask: int
    bank_shift: int
    bank_mask: int
    row_shift: int
    row_mask: int


def address_fields(memory: Memory, order: MapName) -> Fields:
    """``col``: column, bank group, bank, row from low to high bits. ``bg``: bank group, bank, column, row."""
    if order not in MAPS:
        raise OptionError(f"there is no address map {order!r}", hint=f"the maps are {', '.join(MAPS)}")
    sizes = {
        "column": memory.columns,
        "group": memory.bank_groups,
        "bank": memory.banks_per_group,
        "row": memory.rows,
    }
    names = ("column", "group", "bank", "row") if order == "col" else ("group", "bank", "column", "row")
    shift = memory.burst_bytes.bit_length() - 1
    found: dict[str, int] = {}
    for name in names:
        found[f"{name}_shift"], found[f"{name}_mask"] = shift, sizes[name] - 1
        shift += sizes[name].bit_length() - 1
    return Fields(**found)


def decode(memory: Memory, order: MapName, address: Integers) -> tuple[Integers, Integers]:
    """Byte addresses → (bank in 0..banks-1, row). Banks of one group are next to each other; addresses beyond the
    memory's size wrap around."""
    f = address_fields(memory, order)
    group = (address >> f.group_shift) & f.group_mask
    bank = group * memory.banks_per_group + ((address >> f.bank_shift) & f.bank_mask)
    return bank, (address >> f.row_shift) & f.row_mask


def encode(memory: Memory, order: MapName, bank: Integers, row: Integers, column: Integers) -> Integers:
    """The byte address of a burst: the inverse of ``decode``."""
    f = address_fields(memory, order)
    group, inner = bank // memory.banks_per_group, bank % memory.banks_per_group
    address: Integers = (
        (group << f.group_shift) | (inner << f.bank_shift) | (row << f.row_shift) | (column << f.column_shift)
    )
    return address
