"""The memory model compiled: the controller of ``reference``, which skips the clocks at which nothing can happen.

The state is one array of integers (``layout``). A *visit* does what the reference does in one clock, and says at which
clock the next visit is due if no request comes before.
"""

from __future__ import annotations

from convoy.hardware.compiled import compiled
from convoy.hardware.memory.address import Integers
from convoy.hardware.memory.layout import (
    ACT_NEXT,
    ACTS,
    BANK_READY,
    BANKS,
    CHANNEL_READY,
    DUE,
    FAW,
    FREE,
    FREE_TOP,
    GROUP_READY,
    GROUP_SHIFT,
    GROUPS,
    HEAD,
    HIGH,
    HIT,
    LAST_ACTS,
    LENGTH,
    LOW,
    MOST_RULES,
    NEED,
    NEED_READY,
    NEED_SLOT,
    NEVER,
    NUM_BANKS,
    OPEN_BANKS,
    OPEN_ROW,
    REFI,
    REFRESHES,
    ROOM,
    RULE_CLOCKS,
    RULE_COUNT,
    RULE_PLACE,
    RULE_SCOPE,
    SEQUENCE,
    SERVED,
    SERVED_OUTCOME,
    SLOT_BANK,
    SLOT_NEXT,
    SLOT_NUMBER,
    SLOT_OUTCOME,
    SLOT_PREVIOUS,
    SLOT_ROW,
    SLOT_SEQUENCE,
    SLOTS,
    TAIL,
    TRACED,
    WAITING,
    WAITING_AT,
    WAITING_BANKS,
    WRITING,
)

ACT, PRE, READ, WRITE, REFRESH = 0, 1, 2, 3, 4


@compiled
def _list_bank(s: Integers, queue: int, bank: int, waits: bool) -> None:
    """Put a bank on the list of those for which something waits, or take it off; the order is of no account."""
    banks = WAITING + queue * BANKS
    if waits:
        last = s[WAITING_BANKS + queue]
        s[WAITING_BANKS + queue] += 1
        moved = bank
    else:
        s[WAITING_BANKS + queue] -= 1
        last = s[WAITING_AT + queue * BANKS + bank]
        moved = s[banks + s[WAITING_BANKS + queue]]
    s[banks + last] = moved
    s[WAITING_AT + queue * BANKS + moved] = last


@compiled
def _note(s: Integers, queue: int, bank: int) -> None:
    """What the requests of ``queue`` to ``bank`` need next."""
    place = queue * BANKS + bank
    slot = s[HIT + place]
    command = READ + queue
    if slot < 0:
        slot = s[HEAD + place]
        command = ACT if s[OPEN_ROW + bank] < 0 else PRE
    s[NEED + place], s[NEED_SLOT + place] = command, slot
    if (slot < 0) != (s[NEED_READY + place] == NEVER):
        _list_bank(s, queue, bank, slot >= 0)
    s[NEED_READY + place] = NEVER if slot < 0 else s[BANK_READY + command * BANKS + bank]


@compiled
def push(s: Integers, queue: int, bank: int, row: int, number: int) -> None:
    """Put request ``number`` into a queue that has room."""
    s[FREE_TOP + queue] -= 1
    slot = queue * SLOTS + s[FREE + queue * SLOTS + s[FREE_TOP + queue]]
    s[SLOT_SEQUENCE + slot] = s[SEQUENCE]
    s[SEQUENCE] += 1
    s[SLOT_BANK + slot], s[SLOT_ROW + slot], s[SLOT_NUMBER + slot] = bank, row, number
    s[SLOT_OUTCOME + slot] = 0
    place = queue * BANKS + bank
    last = s[TAIL + place]
    s[SLOT_PREVIOUS + slot], s[SLOT_NEXT + slot] = last, -1
    if last >= 0:
        s[SLOT_NEXT + last] = slot
    else:
        s[HEAD + place] = slot
    s[TAIL + place] = slot
    s[LENGTH + queue] += 1
    if s[HIT + place] < 0:
        if s[OPEN_ROW + bank] == row:
            s[HIT + place] = slot
            _note(s, queue, bank)
        elif last < 0:
            _note(s, queue, bank)


@compiled
def _remove(s: Integers, queue: int, slot: int) -> None:
    bank = s[SLOT_BANK + slot]
    place = queue * BANKS + bank
    before, after = s[SLOT_PREVIOUS + slot], s[SLOT_NEXT + slot]
    if before >= 0:
        s[SLOT_NEXT + before] = after
    else:
        s[HEAD + place] = after
    if after >= 0:
        s[SLOT_PREVIOUS + after] = before
    else:
        s[TAIL + place] = before
    row = s[OPEN_ROW + bank]
    while after >= 0 and s[SLOT_ROW + after] != row:  # it was the oldest hit, so the next hit is younger
        after = s[SLOT_NEXT + after]
    s[HIT + place] = after
    s[FREE + queue * SLOTS + s[FREE_TOP + queue]] = slot - queue * SLOTS
    s[FREE_TOP + queue] += 1
    s[LENGTH + queue] -= 1


@compiled
def record(s: Integers, trace: Integers, clock: int, command: int, bank: int, row: int) -> None:
    place = 4 * s[TRACED]
    if place + 4 <= trace.size:
        trace[place], trace[place + 1], trace[place + 2], trace[place + 3] = clock, command, bank, row
        s[TRACED] += 1


@compiled
def _hold_back(s: Integers, command: int, bank: int, clock: int) -> None:
    """Put the rules that begin with ``command`` into force."""
    group = bank >> s[GROUP_SHIFT]
    for number in range(command * MOST_RULES, command * MOST_RULES + s[RULE_COUNT + command]):
        scope = s[RULE_SCOPE + number]
        place = s[RULE_PLACE + number] + (bank if scope == 0 else group if scope == 1 else 0)
        s[place] = max(s[place], clock + s[RULE_CLOCKS + number])


@compiled
def _issue(s: Integers, trace: Integers, clock: int, command: int, bank: int, row: int) -> None:
    """Issue to one bank: open or close its row, and hold back what has to wait."""
    _hold_back(s, command, bank, clock)
    if command == ACT:
        s[OPEN_ROW + bank] = row
        s[OPEN_BANKS] += 1
        s[ACTS] += 1
        s[LAST_ACTS + s[ACT_NEXT]] = clock
        s[ACT_NEXT] = (s[ACT_NEXT] + 1) & 3
        s[CHANNEL_READY + ACT] = max(s[CHANNEL_READY + ACT], s[LAST_ACTS + (s[ACT_NEXT] & 3)] + s[FAW])
        for queue in range(2):
            slot = s[HEAD + queue * BANKS + bank]
            while slot >= 0 and s[SLOT_ROW + slot] != row:
                slot = s[SLOT_NEXT + slot]
            s[HIT + queue * BANKS + bank] = slot
    elif command == PRE:
        s[OPEN_ROW + bank] = -1
        s[OPEN_BANKS] -= 1
        s[HIT + bank] = s[HIT + BANKS + bank] = -1
    _note(s, 0, bank)
    _note(s, 1, bank)
    record(s, trace, clock, command, bank, row)


@compiled
def _ready(s: Integers, command: int, bank: int) -> int:
    first: int = max(
        s[BANK_READY + command * BANKS + bank],
        s[GROUP_READY + command * GROUPS + (bank >> s[GROUP_SHIFT])],
        s[CHANNEL_READY + command],
    )
    return first


@compiled
def close_all(s: Integers, trace: Integers, clock: int) -> int:
    """Close all banks if that is possible at ``clock``; the clock at which it is possible, or ``clock`` if done."""
    if s[OPEN_BANKS] == 0:
        return clock
    first = 0
    for bank in range(s[NUM_BANKS]):
        if s[OPEN_ROW + bank] >= 0:
            first = max(first, _ready(s, PRE, bank))
    if first > clock:
        return first
    for bank in range(s[NUM_BANKS]):
        s[OPEN_ROW + bank] = -1
        s[HIT + bank] = s[HIT + BANKS + bank] = -1
        _hold_back(s, PRE, bank, clock)
        _note(s, 0, bank)
        _note(s, 1, bank)
    s[OPEN_BANKS] = 0
    record(s, trace, clock, PRE, -1, 0)
    return clock


@compiled
def refresh_step(s: Integers, trace: Integers, clock: int) -> int:
    """One step towards a refresh that is due; the clock of the next."""
    if s[OPEN_BANKS] > 0:
        first = close_all(s, trace, clock)
        return first if first > clock else clock + 1
    first = int(s[CHANNEL_READY + REFRESH])
    if first > clock:
        return first
    _hold_back(s, REFRESH, 0, clock)
    s[DUE] += s[REFI]
    s[REFRESHES] += 1
    record(s, trace, clock, REFRESH, -1, 0)
    return clock + 1


@compiled
def _next_of_bank(s: Integers, queue: int, bank: int) -> int:
    """The first clock at which a command for the requests of ``queue`` to ``bank`` may be issued."""
    place = queue * BANKS + bank
    if s[NEED_READY + place] == NEVER:
        return NEVER
    first: int = _ready(s, s[NEED + place], bank)
    return first


@compiled
def _turn(s: Integers) -> int:
    """The queue whose turn it is: 0 reads, 1 writes."""
    reads, writes = s[LENGTH], s[LENGTH + 1]
    if s[WRITING] != 0:
        return 1 if writes > 0 and (reads == 0 or writes > s[LOW]) else 0
    return 1 if writes >= s[HIGH] or (reads == 0 and writes > 0) else 0


@compiled
def visit(s: Integers, trace: Integers, clock: int) -> int:
    """What the controller does at ``clock``; when to come back if nothing arrives (never too late, perhaps too early).
    ``s[SERVED]`` is the request whose column command was issued, or -1."""
    s[SERVED] = -1
    if s[REFI] > 0 and clock >= s[DUE]:
        return refresh_step(s, trace, clock)
    queue = _turn(s)
    s[WRITING] = queue
    column = READ + queue
    wake = s[DUE] if s[REFI] > 0 else NEVER
    if s[LENGTH + queue] == 0:
        return wake

    best, oldest = -1, NEVER
    row_best, row_oldest = -1, NEVER
    columns = acts = pres = 0  # candidates whose time has come
    shift = s[GROUP_SHIFT]
    banks = WAITING + queue * BANKS
    for number in range(banks, banks + s[WAITING_BANKS + queue]):
        bank = s[number]
        place = queue * BANKS + bank
        first = s[NEED_READY + place]
        command = s[NEED + place]
        first = max(first, s[CHANNEL_READY + command], s[GROUP_READY + command * GROUPS + (bank >> shift)])
        if first > clock:
            wake = min(wake, first)
            continue
        slot = s[NEED_SLOT + place]
        sequence = s[SLOT_SEQUENCE + slot]
        if command >= READ:
            columns += 1
            if sequence < oldest:
                best, oldest = slot, sequence
        else:
            if command == ACT:
                acts += 1
            else:
                pres += 1
            if sequence < row_oldest:
                row_best, row_oldest = slot, sequence

    if best >= 0:
        bank = s[SLOT_BANK + best] & (BANKS - 1)
        s[SERVED], s[SERVED_OUTCOME] = s[SLOT_NUMBER + best], s[SLOT_OUTCOME + best]
        _remove(s, queue, best)
        _issue(s, trace, clock, column, bank, s[SLOT_ROW + best])
        wake = min(wake, max(clock + 1, _next_of_bank(s, queue, bank)))
        if columns > 1:
            wake = min(wake, max(clock + 1, s[CHANNEL_READY + column]))
        if _turn(s) != queue:
            wake = clock + 1
    if row_best >= 0:
        bank = s[SLOT_BANK + row_best] & (BANKS - 1)
        closed = s[OPEN_ROW + bank] < 0
        s[SLOT_OUTCOME + row_best] = max(s[SLOT_OUTCOME + row_best], 1 if closed else 2)
        _issue(s, trace, clock, ACT if closed else PRE, bank, s[SLOT_ROW + row_best] if closed else 0)
        wake = min(wake, max(clock + 1, _next_of_bank(s, queue, bank)))
        if acts + pres > 1:  # the next row command: at once, but for one activation after another
            following = clock + 1
            if closed and pres == 0:
                following = max(following, s[CHANNEL_READY + ACT])
            wake = min(wake, following)
    return wake


@compiled
def arrive(s: Integers, queue: int, bank: int, row: int, number: int, wake: int) -> int:
    """Put a request into its queue; ``wake``, or an earlier clock if the request can bring about something earlier."""
    push(s, queue, bank, row, number)
    if _turn(s) != s[WRITING]:
        return 0
    if queue == s[WRITING]:
        return min(wake, _next_of_bank(s, queue, bank))
    return wake


@compiled
def run_requests(
    s: Integers,
    bank: Integers,
    row: Integers,
    is_write: Integers,
    arrival: Integers,
    accepted: Integers,
    issued: Integers,
    outcome: Integers,
    trace: Integers,
) -> None:
    """Carry out all requests in order of arrival; fills ``accepted``, ``issued``, ``outcome`` and ``trace``."""
    n = bank.size
    offered = done = 0
    clock = wake = 0
    while done < n:
        if offered < n and arrival[offered] <= clock:
            queue = is_write[offered] & 1
            if s[LENGTH + queue] < s[ROOM + queue]:
                wake = arrive(s, queue, bank[offered], row[offered], offered, wake)
                accepted[offered] = clock
                offered += 1
        if wake <= clock:
            wake = visit(s, trace, clock)
            number = s[SERVED]
            if number >= 0:
                issued[number] = clock
                outcome[number] = s[SERVED_OUTCOME]
                done += 1
        following = wake
        if offered < n and s[LENGTH + is_write[offered]] < s[ROOM + is_write[offered]]:
            following = min(following, max(arrival[offered], clock + 1))
        clock = max(following, clock + 1)
