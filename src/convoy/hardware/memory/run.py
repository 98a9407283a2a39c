"""Requests through a memory: the one call of this package."""

from __future__ import annotations

from typing import Literal

import numpy as np

from convoy.errors import OptionError
from convoy.hardware.memory.address import MapName, decode
from convoy.hardware.memory.requests import MemoryResult, Requests
from convoy.hardware.memory.timing import Memory, load_memory

EngineName = Literal["compiled", "reference"]


def run(
    requests: Requests,
    memory: Memory | str = "common",
    *,
    address_map: MapName = "col",
    refresh: bool = True,
    engine: EngineName = "compiled",
    commands: bool = False,
) -> MemoryResult:
    """Carry out ``requests`` on one pseudo-channel and say what they came to, in clocks of ``memory``.

    ``memory``: a description, the name of a preset, or the path of a TOML file. ``engine``: "compiled" (needs the extra
    ``simulate``) or "reference" (plain Python, some thousand times slower); both give the same clocks. ``commands``:
    also record every command. Raises OptionError for what makes no sense.
    """
    described = load_memory(memory) if isinstance(memory, str) else memory
    if engine not in ("compiled", "reference"):
        raise OptionError(f"there is no engine {engine!r}", hint="the engines are compiled and reference")
    address, is_write, requester, arrival = requests.arrays()
    bank, row = decode(described, address_map, address)
    writes = is_write.astype(np.int64)
    if engine == "reference":
        from convoy.hardware.memory.reference import simulate

        done = simulate(described, bank, row, writes, arrival, refresh=refresh)
        accepted, issued, outcome, refreshes = done.accepted, done.issued, done.outcome, done.refreshes
        trace = np.array(done.commands if commands else [], np.int64).reshape(-1, 4)
    else:
        from convoy.hardware.memory.engine import run_requests
        from convoy.hardware.memory.layout import REFRESHES, TRACED, new_state

        state = new_state(described, refresh=refresh)
        accepted, issued, outcome = (np.full(address.size, -1, np.int64) for _ in range(3))
        room = (4 * address.size + 64) * 2 if commands else 0
        while True:
            recorded = np.zeros(4 * room, np.int64)
            run_requests(state, bank, row, writes, arrival, accepted, issued, outcome, recorded)
            if int(state[TRACED]) < room or not commands:
                break
            room *= 4
            state = new_state(described, refresh=refresh)
        trace = recorded.reshape(-1, 4)[: int(state[TRACED])]
        refreshes = int(state[REFRESHES])
    end = issued + np.where(is_write, described.WL + described.burst_clocks, described.read_latency)
    return MemoryResult(
        memory=described,
        cycles=int(end.max()) if end.size else 0,
        refreshes=refreshes,
        is_write=is_write,
        requester=requester,
        accepted=accepted,
        issued=issued,
        completed=end,
        outcome=outcome,
        commands=trace,
    )
