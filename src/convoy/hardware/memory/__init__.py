"""One pseudo-channel of a high-bandwidth memory, request by request.

from convoy.hardware import memory

result = memory.run(memory.Requests(address=addresses, is_write=False))
result.percent_of_peak, result.row_hit_rate, result.by_requester()
"""

from __future__ import annotations

from convoy.hardware.memory.requests import MemoryResult, Requests
from convoy.hardware.memory.run import run
from convoy.hardware.memory.timing import PRESETS, Command, Memory, Rule, load_memory, memory_from

__all__ = ["PRESETS", "Command", "Memory", "MemoryResult", "Requests", "Rule", "load_memory", "memory_from", "run"]
