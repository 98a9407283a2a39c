"""Where the compiled controller keeps what: places in one array of integers, and how the array is made."""

from __future__ import annotations

import numpy as np

from convoy.hardware.memory.address import Integers
from convoy.hardware.memory.timing import Memory

NEVER = 1 << 60
BANKS, GROUPS, COMMANDS, SLOTS = 64, 64, 5, 64  # the most there may be; slots per queue

# Facts about the memory.
NUM_BANKS, GROUP_SHIFT = 0, 1  # a bank's group: bank >> shift
ROOM = 3  # of the two queues
HIGH, LOW = 5, 6
REFI = 7  # 0: no refresh
FAW = 8  # between four activations; put into force as a rule of the channel
# State of the controller.
WRITING, DUE, REFRESHES, SEQUENCE = 16, 17, 18, 19
OPEN_BANKS = 20  # how many banks have a row open
LENGTH = 21  # of the two queues
FREE_TOP = 23  # of the two stacks of free slots
SERVED, SERVED_OUTCOME = 25, 26  # of the last visit: number of the request, or -1
TRACED = 27  # commands recorded so far
LAST_ACTS, ACT_NEXT = 28, 32  # the last four activations, and which is the oldest
ACTS = 33
WAITING_BANKS = 34  # of the two queues: for how many banks something waits

MOST_RULES = 8  # that begin with one command
RULE_COUNT = 64  # [before]
RULE_PLACE = RULE_COUNT + COMMANDS  # [before][n]: where the first clock of the later command is kept for bank 0
RULE_SCOPE = RULE_PLACE + COMMANDS * MOST_RULES  # 0 bank, 1 group, 2 channel
RULE_CLOCKS = RULE_SCOPE + COMMANDS * MOST_RULES
BANK_READY = RULE_CLOCKS + COMMANDS * MOST_RULES  # [after][bank]: first clock
GROUP_READY = BANK_READY + COMMANDS * BANKS
CHANNEL_READY = GROUP_READY + COMMANDS * GROUPS
OPEN_ROW = CHANNEL_READY + COMMANDS  # -1: closed
HEAD = OPEN_ROW + BANKS  # [queue][bank]: oldest slot, -1: none
TAIL = HEAD + 2 * BANKS
HIT = TAIL + 2 * BANKS  # [queue][bank]: oldest slot whose row is open, -1: none
NEED = HIT + 2 * BANKS  # [queue][bank]: the command that its requests need next
NEED_READY = NEED + 2 * BANKS  # [queue][bank]: from when on, as far as the bank alone decides; NEVER: nothing waits
NEED_SLOT = NEED_READY + 2 * BANKS  # [queue][bank]: on behalf of which request
WAITING = NEED_SLOT + 2 * BANKS  # [queue][n]: those banks, in no order
WAITING_AT = WAITING + 2 * BANKS  # [queue][bank]: the place of a bank among them
SLOT_SEQUENCE = WAITING_AT + 2 * BANKS  # [queue][slot]
SLOT_BANK = SLOT_SEQUENCE + 2 * SLOTS
SLOT_ROW = SLOT_BANK + 2 * SLOTS
SLOT_NEXT = SLOT_ROW + 2 * SLOTS  # the next younger of the same bank
SLOT_PREVIOUS = SLOT_NEXT + 2 * SLOTS
SLOT_NUMBER = SLOT_PREVIOUS + 2 * SLOTS
SLOT_OUTCOME = SLOT_NUMBER + 2 * SLOTS
FREE = SLOT_OUTCOME + 2 * SLOTS
SIZE = FREE + 2 * SLOTS

_SCOPES = ("bank", "group", "channel")


def new_state(memory: Memory, *, refresh: bool) -> Integers:
    """A controller with empty queues and closed banks at clock 0."""
    state = np.zeros(SIZE, np.int64)
    state[NUM_BANKS], state[GROUP_SHIFT] = memory.banks, memory.banks_per_group.bit_length() - 1
    state[ROOM], state[ROOM + 1] = memory.read_queue, memory.write_queue
    state[HIGH], state[LOW] = memory.write_high, memory.write_low
    state[REFI] = memory.tREFI if refresh else 0
    state[DUE] = state[REFI]
    state[SERVED] = -1
    state[LAST_ACTS : LAST_ACTS + 4] = -(10**9)
    for rule in memory.rules():
        if rule.window == 4:
            state[FAW] = rule.clocks
            continue
        scope = _SCOPES.index(rule.scope)
        number = rule.before * MOST_RULES + int(state[RULE_COUNT + rule.before])
        state[RULE_COUNT + rule.before] += 1
        starts = (BANK_READY + rule.after * BANKS, GROUP_READY + rule.after * GROUPS, CHANNEL_READY + rule.after)
        state[RULE_PLACE + number] = starts[scope]
        state[RULE_SCOPE + number] = scope
        state[RULE_CLOCKS + number] = rule.clocks
    state[OPEN_ROW:SLOT_SEQUENCE] = -1
    state[NEED_READY:NEED_SLOT] = NEVER
    for queue in range(2):
        state[FREE + queue * SLOTS : FREE + (queue + 1) * SLOTS] = np.arange(SLOTS)
        state[FREE_TOP + queue] = SLOTS
    return state
