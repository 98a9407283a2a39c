"""Arithmetic units beside the banks of a memory, of the kind that HBM-PIM has.

A unit serves ``banks_per_unit`` neighbouring banks, one at a time; all units of a pseudo-channel carry out the same
command on the same row and column of their banks. A column command moves 256 bit between a bank and a unit and makes
it carry out one instruction; such commands follow each other at tCCD_L (Lee et al., "Hardware Architecture and Software
Stack for PIM Based on Commercial DRAM Technology", ISCA 2021).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from convoy.errors import OptionError
from convoy.hardware.memory.timing import Memory


@dataclass(frozen=True, slots=True)
class Units:
    """The units of one pseudo-channel. Times in clocks of the memory.

    ``registers``: of 256 bit in each of the two files; as many columns are worked on before the next instruction.
    The switch costs are parts of handing the channel over, measured one by one in a published simulator of the
    product: ``park_in`` (close the host's rows), ``to_all_banks``, ``program`` (load the instructions), ``to_units``,
    and back ``from_units``, ``to_single_bank``, ``park_out``. Measured together they overlap by ``overlap``;
    beside host traffic, by ``overlap_host`` more, and programming costs only ``program_net``.
    """

    banks_per_unit: int
    source: str
    element_bytes: int = 2
    unit_bytes: int = 32
    registers: int = 8
    park_in: int = 110
    to_all_banks: int = 41
    program: int = 39
    to_units: int = 22
    from_units: int = 22
    to_single_bank: int = 61
    park_out: int = 125
    overlap: int = 11
    overlap_host: int = 22
    program_net: int = 15

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "source":
                continue
            least = 1 if field.name in ("banks_per_unit", "element_bytes", "unit_bytes", "registers") else 0
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise OptionError(
                    f"the units' {field.name} is {value!r}, but must be a whole number of {least} or more",
                    hint="the product has two banks a unit, the publication four; see the presets",
                )
        if self.banks_per_unit < 2:
            raise OptionError(
                "the units' banks_per_unit is 1, but rows are opened ahead in one bank while a unit works on another",
                hint="give 2 or more",
            )
        if self.unit_bytes % self.element_bytes:
            raise OptionError(
                f"{self.unit_bytes} bytes of a unit do not hold elements of {self.element_bytes} bytes evenly",
                hint="elements of 2 bytes (FP16) or 4 (FP32)",
            )
        if self.leave < 0 or self.enter < 0:
            raise OptionError(
                "the parts of a switch overlap by more than they last", hint="lower overlap or overlap_host"
            )

    def check(self, memory: Memory) -> None:
        """Raises OptionError where these units do not fit into ``memory``."""
        if memory.banks_per_group % self.banks_per_unit:
            raise OptionError(
                f"{self.banks_per_unit} banks share a unit, but a bank group of memory {memory.name} has "
                f"{memory.banks_per_group}",
                hint="the banks of a group must divide evenly among its units",
            )
        if memory.columns % self.registers:
            raise OptionError(
                f"{memory.columns} columns of a row in memory {memory.name} are no multiple of {self.registers} "
                "registers",
                hint="give a divisor",
            )

    def per_channel(self, memory: Memory) -> int:
        """Units in one pseudo-channel."""
        return memory.banks // self.banks_per_unit

    @property
    def lanes(self) -> int:
        """Elements that a unit works on at once."""
        return self.unit_bytes // self.element_bytes

    def round_elements(self, memory: Memory) -> int:
        """Elements of one round: every unit fills its registers once from one of its banks."""
        return self.per_channel(memory) * self.lanes * self.registers

    @property
    def enter(self) -> int:
        """Clocks from the host's last command to the units' first, with programming."""
        return self.park_in + self.to_all_banks + self.program + self.to_units - self.overlap

    @property
    def enter_programmed(self) -> int:
        """The same where the units hold the right instructions already."""
        return self.enter - self.program_net

    @property
    def leave(self) -> int:
        """Clocks from the units' last round until the host's first command, where the host waits for it."""
        return self.leave_idle - self.overlap_host

    @property
    def leave_idle(self) -> int:
        """The same to the end of the switch, where nobody waits."""
        return self.from_units + self.to_single_bank + self.park_out

    @property
    def fixed(self) -> int:
        """What one use costs besides its rounds, host idle before and after."""
        return self.enter + self.leave_idle

    @property
    def turn(self) -> int:
        """What one turn of the units among host traffic costs besides its rounds."""
        return self.enter + self.leave
