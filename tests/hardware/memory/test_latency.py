"""Latencies of single requests, to the clock, and what is said of each requester."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from convoy.errors import OptionError
from convoy.hardware import memory
from convoy.hardware.memory.address import encode

COMMON = memory.load_memory("common")


def address(bank: int, row: int, column: int = 0) -> int:
    def one(value: int) -> Any:
        return np.array([value], np.int64)

    return int(encode(COMMON, "col", one(bank), one(row), one(column))[0])


@pytest.mark.parametrize("engine", ["compiled", "reference"])
def test_unloaded_latency_is_that_of_the_rules(engine):
    """The constant that the queue adds is 0. Closed: RCD + RL + burst; hit: RL + burst; conflict: RP more."""
    requests = memory.Requests([address(3, 7), address(3, 7, 5), address(3, 8)], arrival=[0, 1000, 2000])
    done = memory.run(requests, refresh=False, engine=engine)
    assert done.latency.tolist() == [30, 16, 44]
    assert done.outcome.tolist() == [1, 0, 2]


def test_a_conflict_waits_until_the_row_may_close():
    requests = memory.Requests([address(0, 0), address(0, 1)], arrival=[0, 0])
    done = memory.run(requests, refresh=False)
    assert done.issued.tolist() == [14, 34 + 14 + 14]  # tRAS, tRP, tRCDRD


def test_a_read_after_a_write_waits_for_the_turn_around():
    same, other = address(0, 0, 1), address(4, 0)  # bank 4 is in another bank group
    for second, turn in ((same, 5 + 2 + 8), (other, 5 + 2 + 6)):
        warm = [address(0, 0), second]  # both rows open
        requests = memory.Requests(
            [*warm, address(0, 0, 2), second], [False, False, True, False], arrival=[0, 0, 500, 502]
        )
        done = memory.run(requests, refresh=False)
        assert done.issued[3] - done.issued[2] == turn


def test_requesters_are_told_apart():
    rng = np.random.default_rng(0)
    n = 2000
    scattered = rng.integers(0, COMMON.bytes, n) // 32 * 32
    line = np.arange(n) * 32
    mixed = np.where(np.arange(n) % 2 == 0, line, scattered)
    done = memory.run(memory.Requests(mixed, requester=np.arange(n) % 2, arrival=np.arange(n) * 8))
    found = done.by_requester()
    assert found[0]["requests"] == found[1]["requests"] == n // 2
    assert found[0]["hit"] > 0.8 * n / 2 > 0.05 * n > found[1]["hit"]
    assert found[0]["read_latency_clocks"]["mean"] < found[1]["read_latency_clocks"]["mean"]
    total = {name: found[0][name] + found[1][name] for name in ("hit", "closed", "conflict")}
    assert total == done.counts() and sum(total.values()) == n


def test_units_of_the_result():
    done = memory.run(memory.Requests(np.arange(5000) * 32), refresh=False)
    assert done.bytes == 160_000
    assert done.bytes_per_clock == pytest.approx(160_000 / done.cycles)
    assert done.gigabytes_per_second == pytest.approx(done.bytes_per_clock / COMMON.clock_ns)
    assert done.percent_of_peak == pytest.approx(100 * done.bytes_per_clock / 16)
    assert done.to_dict()["requests"] == 5000


def test_nothing_asked_nothing_done():
    done = memory.run(memory.Requests([]))
    assert (done.cycles, done.bytes, done.row_hit_rate, done.bytes_per_clock) == (0, 0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("requests", "words"),
    [
        (memory.Requests([0, 32], is_write=[True]), "2 addresses but 1 values of is_write"),
        (memory.Requests([0, 32], arrival=[5, 3]), "arrivals fall"),
        (memory.Requests([-1]), "negative"),
    ],
)
def test_requests_that_do_not_fit_together_are_refused(requests, words):
    with pytest.raises(OptionError, match=words):
        memory.run(requests)
