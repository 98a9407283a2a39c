"""One pseudo-channel with two sides: the host's convolutions and the units' kernels, taking turns.

The host is a stream of reads and writes around a computation: read j has to be there before the computation passes its
point, and is asked for when fewer than ``STAGING`` reads lie between it and the computation; a write is offered when
the computation has passed its point. So the clock at which the computation passes the point of read j is

    tau(j) = max(tau(j - 1) + point(j) - point(j - 1), done(j)).

The units carry out rounds, which nothing interrupts. Who holds the channel is decided by the turn policy, at any clock
while the host holds it, between rounds while the units do.
"""

from __future__ import annotations

import numpy as np

from convoy.hardware.compiled import compiled
from convoy.hardware.memory import layout as M
from convoy.hardware.memory.address import Integers
from convoy.hardware.memory.engine import arrive, close_all, record, visit
from convoy.hardware.step import layout as L

MASK = L.RING - 1
ACT, REFRESH, ENTER, LEAVE = 0, 4, 9, 10


@compiled
def _push(s: Integers, p: Integers, queue: int, burst: int, number: int, wake: int) -> int:
    """Offer one burst to the controller, which has room for it."""
    address = burst << p[L.BURST_SHIFT]
    f = L.FIELDS
    group = (address >> p[f + 2]) & p[f + 3]
    bank = group * p[L.PER_GROUP_BANKS] + ((address >> p[f + 4]) & p[f + 5])
    earlier: int = arrive(s, queue, bank, (address >> p[f + 6]) & p[f + 7], number, wake)
    return earlier


@compiled
def _ready_rounds(units: Integers, u: int, left: int, host_done: Integers, clock: int, most: int) -> int:
    """Rounds that the units could carry out now, counted up to ``most``."""
    count = 0
    while u < units.shape[0] and count < most:
        needs = units[u, L.NEEDS]
        if needs >= 0 and (host_done[needs] < 0 or host_done[needs] > clock):
            break
        count += left if left > 0 else units[u, L.ROUNDS]
        left = 0
        u += 1
    return count


@compiled
def _part_of(first_read: Integers, read: int, part: int) -> int:
    """The part of the host's work that a read belongs to, not before ``part``."""
    while read >= first_read[part + 1]:
        part += 1
    return part


@compiled
def _point(host: Integers, base: Integers, first_read: Integers, read: int, part: int) -> int:
    """How much computation lies before ``read``."""
    index = read - first_read[part]
    point: int = base[part] + index * host[part, L.COMPUTE] // host[part, L.READS]
    return point


@compiled
def run_segment(
    s: Integers,
    p: Integers,
    host: Integers,
    units: Integers,
    host_done: Integers,
    unit_start: Integers,
    unit_done: Integers,
    out: Integers,
    trace: Integers,
) -> None:
    """Carry out all parts of both sides. Fills ``host_done`` (by part: the computation is over and its writes are in
    the memory), ``unit_start``, ``unit_done`` and ``out``. ``host_done`` comes in as -1."""
    parts, kernels = host.shape[0], units.shape[0]
    done = np.full(L.RING, -1, np.int64)
    tau = np.zeros(L.RING, np.int64)
    base = np.zeros(parts + 1, np.int64)  # point at which a part begins
    first_read = np.zeros(parts + 1, np.int64)
    writes_left = np.zeros(parts, np.int64)
    last_write = np.zeros(parts, np.int64)
    compute_end = np.full(parts, -1, np.int64)
    for k in range(parts):
        base[k + 1] = base[k] + host[k, L.COMPUTE]
        first_read[k + 1] = first_read[k] + host[k, L.READS]
        writes_left[k] = host[k, L.WRITES]
    reads = first_read[parts]
    asked = asked_part = 0  # the next read to ask for
    front = front_part = 0  # the first read whose tau is not known
    front_tau = front_point = 0  # of the read before
    passed = 0  # reads whose tau is not in the future
    write_part = write_index = 0  # the next write to offer
    near = near_part = 0  # the last known read before the point of that write
    credit = 2  # writes that may be offered before the next read, so that none waits for all the writes
    ripe, stale = M.NEVER, True  # when that write may be offered; whether that has to be found out anew
    parts_done = 0

    policy, exclusive = p[L.POLICY], p[L.EXCLUSIVE] != 0
    staging = p[L.STAGING]
    owner, since, until = L.HOST, 0, M.NEVER
    decided = last_column = 0  # clocks of the last decision for the units and of the host's last column command
    u, left, program = 0, 0, -1
    running = False
    away_from, away_to = 0, 0  # the last turn of the units, as the host saw it
    clock = wake = 0
    margin = p[L.READ_LATENCY] + 30
    while True:
        # --- what the computation has passed ----------------------------------------------------------
        while front < asked and done[front & MASK] >= 0:
            k = front_part = _part_of(first_read, front, front_part)
            point = _point(host, base, first_read, front, k)
            free = front_tau + point - front_point
            there = done[front & MASK]
            if there > free:
                out[L.STALL] += there - free
                if away_to > free:
                    out[L.STALL_AWAY] += min(there, away_to) - max(free, min(away_from, there))
                free = there
            tau[front & MASK] = free
            front_tau, front_point = free, point
            front += 1
            stale = True
            if front == first_read[k + 1]:
                compute_end[k] = front_tau + base[k + 1] - front_point
        while parts_done < parts and compute_end[parts_done] >= 0 and writes_left[parts_done] == 0:
            k = parts_done  # in order: what needs a part needs those before it too
            host_done[k] = max(compute_end[k], last_write[k])
            if k > 0:
                host_done[k] = max(host_done[k], host_done[k - 1])
            parts_done += 1
        while passed < front and tau[passed & MASK] <= clock:
            passed += 1
        # --- what the host offers -----------------------------------------------------------------------
        offer = M.NEVER  # clock of the next offer
        offered = False
        if stale:
            stale = False
            ripe = M.NEVER
            while write_part < parts and write_index == host[write_part, L.WRITES]:
                write_part += 1
                write_index = 0
            if write_part == parts:
                near, near_part = front - 1, front_part
            elif near < front:
                k = write_part
                point = base[k] + (write_index + 1) * host[k, L.COMPUTE] // host[k, L.WRITES]
                known = True
                while near + 1 < reads:
                    q = _part_of(first_read, near + 1, near_part)
                    if _point(host, base, first_read, near + 1, q) > point:
                        break
                    if near + 1 == front:  # it lies before the write, and when it is passed is not known yet
                        known = False
                        break
                    near, near_part = near + 1, q
                if known:
                    ripe = tau[near & MASK] + point - _point(host, base, first_read, near, near_part)
        wanted = asked < reads and asked - near < L.RING // 2 and asked < passed + staging
        if ripe < M.NEVER and s[M.LENGTH + 1] < s[M.ROOM + 1] and (credit > 0 or not wanted):
            if ripe <= clock:
                to = host[write_part, L.WRITE_TO] + write_index
                wake = _push(s, p, 1, to, 2 * write_part + 1, wake)
                write_index += 1
                credit -= 1
                offered = stale = True
                offer = clock + 1
            else:
                offer = ripe
        if wanted and s[M.LENGTH] < s[M.ROOM]:
            if offered:
                offer = clock + 1
            else:
                k = asked_part = _part_of(first_read, asked, asked_part)
                j = asked - first_read[k]
                weights = j * host[k, L.WEIGHT_READS] // host[k, L.READS]
                if (j + 1) * host[k, L.WEIGHT_READS] // host[k, L.READS] > weights:
                    burst = host[k, L.WEIGHTS_FROM] + weights
                else:
                    burst = host[k, L.READ_FROM] + j - weights
                done[asked & MASK] = -1
                wake = _push(s, p, 0, burst, 2 * asked, wake)
                credit = 2 + host[k, L.WRITES] // host[k, L.READS]
                asked += 1
                offered = True
                offer = clock + 1
        elif not wanted and asked < reads and passed < front:
            offer = min(offer, tau[passed & MASK])
        queued = s[M.LENGTH] + s[M.LENGTH + 1]
        lazy = s[M.LOW] if asked < reads else 0  # writes that the controller would not turn to
        host_has = offered or s[M.LENGTH] > 0 or s[M.LENGTH + 1] > lazy or offer <= clock
        host_over = asked == reads and write_part == parts and queued == 0
        starve = M.NEVER  # the clock at which the computation will wait
        if policy == L.PLANNED and front < reads:
            q = _part_of(first_read, front, front_part)
            starve = front_tau + _point(host, base, first_read, front, q) - front_point
        # --- the units --------------------------------------------------------------------------------
        if (owner == L.UNITS or not exclusive) and until <= clock:
            if running:
                running = False
                left -= 1
                if left == 0:
                    unit_done[u] = clock
                    program = units[u, L.KERNEL]
                    u += 1
            until = M.NEVER
        if exclusive and owner == L.LEAVING and until <= clock:
            owner, since, until = L.HOST, clock, M.NEVER
            away_to = clock
            wake = clock
        available = False
        becomes = M.NEVER  # when the next part of the units becomes available
        if u < kernels:
            needs = units[u, L.NEEDS]
            available = needs < 0 or (host_done[needs] >= 0 and host_done[needs] <= clock)
            if not available and host_done[needs] >= 0:
                becomes = host_done[needs]
        if u == kernels and parts_done == parts and owner == L.HOST and (not exclusive or until == M.NEVER):
            last = 0
            for k in range(parts):
                last = max(last, host_done[k])
            if not exclusive and kernels > 0:
                last = max(last, unit_done[kernels - 1])
            out[L.END] = max(last, since)
            return
        if (owner == L.UNITS or not exclusive) and until == M.NEVER:
            stay = available
            if exclusive and stay and host_has:
                if policy == L.ALTERNATE:
                    stay = clock - since < p[L.TURN]
                elif policy == L.QUEUE:
                    stay = queued < p[L.MARK] or clock - since < p[L.MIN_TURN]
                elif policy == L.PLANNED and not host_over:
                    stay = clock + units[u, L.ROUND_CLOCKS] + p[L.LEAVE] + margin <= starve
            if not stay and exclusive and (u == kernels or available or not host_over or becomes == M.NEVER):
                owner, until = L.LEAVING, clock + p[L.LEAVE] - p[L.ROW_LATENCY]
                out[L.SWITCHING] += p[L.LEAVE]
                s[M.CHANNEL_READY + ACT] = max(s[M.CHANNEL_READY + ACT], until)
                s[M.CHANNEL_READY + REFRESH] = max(s[M.CHANNEL_READY + REFRESH], until)
                record(s, trace, until, LEAVE, -1, 0)
            elif stay:
                if s[M.REFI] > 0 and exclusive and clock >= s[M.DUE]:
                    s[M.DUE] += s[M.REFI]
                    record(s, trace, clock, REFRESH, u, 1)
                    out[L.UNIT_REFRESHES] += 1
                    until = clock + units[u, L.REFRESH_EXTRA]
                else:
                    cost = units[u, L.ROUND_CLOCKS]
                    out[L.UNITS_BUSY] += cost
                    if left == 0:
                        left = units[u, L.ROUNDS]
                        unit_start[u] = clock
                    if program != units[u, L.KERNEL]:
                        if program >= 0:
                            cost += p[L.PROGRAM_NET]
                        program = units[u, L.KERNEL]
                    if left == 1:
                        cost += units[u, L.FIXED]
                    if exclusive:
                        record(s, trace, clock, L.TRACE_ROUND, u, 0)
                    out[L.ROUNDS_DONE] += 1
                    running = True
                    until = clock + cost
        # --- the host's turn ----------------------------------------------------------------------------
        served = False
        look = M.NEVER  # when to look at the turn policy again
        if owner == L.HOST:
            if exclusive and available:
                go = not host_has
                if policy == L.ALTERNATE:
                    go = go or clock - since >= p[L.TURN]
                    look = since + p[L.TURN]
                elif policy == L.QUEUE:
                    if clock - since >= p[L.MIN_TURN] or host_over:
                        go = go or _ready_rounds(units, u, left, host_done, clock, p[L.MARK]) >= p[L.MARK]
                    else:
                        go, look = False, since + p[L.MIN_TURN]
                elif policy == L.PLANNED and not host_over:
                    full = asked == reads or asked >= passed + staging - staging // 16
                    least = p[L.ENTER] + p[L.LEAVE] + units[u, L.ROUND_CLOCKS] + margin
                    go = full and starve - clock >= 2 * least
                if go:
                    owner, decided, wake = L.CLOSING, clock, clock
                    out[L.TURNS] += 1
            if owner == L.HOST and wake <= clock:
                wake = visit(s, trace, clock)
                number = s[M.SERVED]
                if number >= 0:
                    out[L.HITS + s[M.SERVED_OUTCOME]] += 1
                    if number & 1:
                        k = number >> 1
                        out[L.WRITES_DONE] += 1
                        writes_left[k] -= 1
                        last_write[k] = max(last_write[k], clock + p[L.WRITE_LATENCY])
                    else:
                        out[L.READS_DONE] += 1
                        done[(number >> 1) & MASK] = clock + p[L.READ_LATENCY]
                    served = True
                    last_column = clock
        if owner == L.CLOSING and wake <= clock:
            wake = close_all(s, trace, clock)
            if wake <= clock:
                enter = p[L.ENTER_PROGRAMMED] if program == units[u, L.KERNEL] else p[L.ENTER]
                program = units[u, L.KERNEL]
                record(s, trace, clock, ENTER, -1, 0)
                until = max(decided, last_column + p[L.READ_LATENCY]) + enter - p[L.READ_LATENCY]
                # A refresh that the host began has to be over before the units open their rows.
                until = max(until, clock + p[L.CLOSE_LATENCY], s[M.CHANNEL_READY + ACT] + p[L.ROW_LATENCY])
                out[L.SWITCHING] += until - decided
                away_from = decided
                away_to = M.NEVER
                owner, since = L.UNITS, until
        # --- the next clock -----------------------------------------------------------------------------
        following = min(offer, until, becomes)
        if owner == L.HOST or owner == L.CLOSING:
            following = min(following, wake, look)
        if served or (front < asked and done[front & MASK] >= 0):
            following = clock + 1
        if exclusive and owner == L.UNITS and policy == L.PLANNED and until == M.NEVER:
            following = min(following, starve)
        if following >= M.NEVER:  # only the end of a part can be what comes next
            for k in range(parts):
                if host_done[k] > clock:
                    following = min(following, host_done[k])
        if following >= M.NEVER:
            out[L.END] = -1
            return
        clock = max(following, clock + 1)
