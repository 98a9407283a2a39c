"""What the engine of two sides is given and gives back: places in arrays of integers. Times in clocks."""

from __future__ import annotations

# --- policies ---------------------------------------------------------------------------------------------------
IDLE, ALTERNATE, QUEUE, PLANNED = 0, 1, 2, 3

# --- parameters -------------------------------------------------------------------------------------------------
POLICY = 0
EXCLUSIVE = 1  # 0: both sides at once (banks are split)
MARK = 2  # requests or rounds that wait, for QUEUE
MIN_TURN = 3  # for QUEUE
TURN = 4  # for ALTERNATE
STAGING = 5  # reads between the memory and the computation
ENTER, ENTER_PROGRAMMED, LEAVE, PROGRAM_NET = 6, 7, 8, 9
READ_LATENCY, WRITE_LATENCY = 10, 11  # from the column command to the end of its data
FIELDS = 12  # shifts and masks of addresses: column, group, bank, row
BURST_SHIFT = 20
PER_GROUP_BANKS = 21
ROW_LATENCY = 22  # within LEAVE: from opening a row to the first column command
CLOSE_LATENCY = 23  # the least from closing the host's rows to the units' first column command
PARAMETERS = 24

# --- one part of the host's work (a CONV task, or one group of it) -------------------------------------------------
READS, WEIGHT_READS, WRITES, COMPUTE = 0, 1, 2, 3  # weight reads are among the reads
READ_FROM, WEIGHTS_FROM, WRITE_TO = 4, 5, 6  # bursts
HOST_COLUMNS = 7

# --- one part of the units' work -----------------------------------------------------------------------------------
ROUNDS, ROUND_CLOCKS, FIXED, NEEDS, KERNEL, REFRESH_EXTRA = 0, 1, 2, 3, 4, 5  # NEEDS: part of the host, -1: nothing
UNIT_COLUMNS = 6

# --- results --------------------------------------------------------------------------------------------------------
END = 0
TURNS = 1  # times that the units took the channel
STALL = 2  # clocks that the computation waited for reads
STALL_AWAY = 3  # of these, for reads that the units' turns held up
HITS, CLOSED, CONFLICTS = 4, 5, 6  # of the host's requests
READS_DONE, WRITES_DONE = 7, 8
ROUNDS_DONE = 9
UNITS_BUSY = 10  # clocks in rounds
SWITCHING = 11  # clocks in which neither side could use the channel
UNIT_REFRESHES = 12
UNITS_WAIT = 13  # clocks in which the units had work and the host the channel
RESULTS = 16

# --- who holds the channel --------------------------------------------------------------------------------------------
HOST, CLOSING, UNITS, LEAVING = 0, 1, 2, 3

RING = 1 << 15  # reads whose times are kept; more than the staging by far
TRACE_ROUND = 11  # in a trace: a round begins, of the kernel in the place of the bank
