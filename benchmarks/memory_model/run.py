"""Does the memory model reach what two published simulators reach, and how fast is it?

    python benchmarks/memory_model/run.py
    python benchmarks/memory_model/run.py --requests 200000 --rounds 7

Bandwidth in percent of peak beside the figures of DRAMsim3 and Ramulator 2.1 at the same settings (docs/simulate.md);
requests per second of one core, median, smallest and largest of the rounds, patterns in turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.rounds import Noise, finish, spread, table

from convoy.hardware import memory
from convoy.hardware.memory.patterns import Pattern, pattern

# (memory, pattern, map, refresh) → what DRAMsim3 and Ramulator 2.1 reached, percent of peak; None: not run there
FIGURES: dict[tuple[str, Pattern, str, bool], tuple[float, float | None]] = {
    ("common", "sequential read", "col", True): (89.8, 90.2),
    ("common", "sequential read", "bg", True): (89.6, 89.9),
    ("common", "sequential write", "col", True): (89.8, 89.7),
    ("common", "sequential write", "bg", True): (89.7, 88.2),
    ("common", "two reads, one write", "col", True): (77.3, 75.2),
    ("common", "two reads, one write", "bg", True): (83.6, 74.7),
    ("common", "random read", "col", True): (44.5, 44.7),
    ("common", "random write", "col", True): (44.5, 43.6),
    ("common", "conflicts", "col", True): (3.78, 3.79),
    ("common", "hits", "col", True): (45.1, 45.1),
    ("common", "hits in four groups", "col", True): (90.2, 90.2),
    ("common", "sequential read", "col", False): (100.0, 100.0),
    ("common", "sequential read", "bg", False): (100.0, 99.7),
    ("common", "sequential write", "col", False): (100.0, 100.0),
    ("common", "sequential write", "bg", False): (100.0, 98.2),
    ("common", "two reads, one write", "col", False): (86.0, 83.5),
    ("common", "two reads, one write", "bg", False): (91.9, 83.1),
    ("common", "random read", "col", False): (49.7, 49.6),
    ("common", "random write", "col", False): (49.7, 48.4),
    ("common", "conflicts", "col", False): (4.17, 4.17),
    ("common", "hits", "col", False): (50.0, 50.0),
    ("common", "hits in four groups", "col", False): (100.0, 100.0),
    ("wide", "sequential read", "col", True): (91.9, None),
    ("wide", "random read", "col", True): (24.6, None),
    ("wide", "conflicts", "col", True): (3.87, None),
    ("wide", "sequential read", "col", False): (100.0, None),
    ("wide", "random read", "col", False): (26.7, None),
    ("wide", "conflicts", "col", False): (4.17, None),
}
TIMED: tuple[Pattern, ...] = (
    "sequential read",
    "sequential write",
    "two reads, one write",
    "random read",
    "random write",
)


def bandwidth(count: int) -> list[dict[str, Any]]:
    rows = []
    for (preset, name, order, refresh), figures in FIGURES.items():
        described = memory.load_memory(preset)
        done = memory.run(pattern(name, described, order, count), described, address_map=order, refresh=refresh)
        near = min((f for f in figures if f is not None), key=lambda f: abs(f - done.percent_of_peak))
        row = {"memory": preset, "pattern": name, "map": order, "refresh": refresh, "dramsim3": figures[0]}
        row |= {"ramulator": figures[1], "convoy": round(done.percent_of_peak, 2)}
        rows.append(row | {"off_percent": round(100 * (done.percent_of_peak / near - 1), 2)})
    return rows


def speed(count: int, rounds: int) -> dict[str, list[float]]:
    """Requests per second of CPU time, by pattern; the engine is compiled before."""
    described = memory.load_memory("common")
    streams = {name: pattern(name, described, "col", count) for name in TIMED}
    found: dict[str, list[float]] = {name: [] for name in TIMED}
    for number in range(rounds + 1):
        for name, requests in streams.items():
            began = time.process_time()
            memory.run(requests, described)
            if number:
                found[name].append(count / (time.process_time() - began))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    noise = Noise()
    rows = bandwidth(options.requests)
    head = ("memory, pattern, map", "refresh", "DRAMsim3", "Ramulator 2.1", "convoy", "% off the nearer")
    cells = []
    for r in rows:
        name = f"{r['memory']}, {r['pattern']}, {r['map']}"
        found = (f"{r['convoy']:.2f}", f"{r['off_percent']:+.2f}")
        cells.append((name, "on" if r["refresh"] else "off", r["dramsim3"], r["ramulator"], *found))
    print(f"Percent of peak, {options.requests} requests\n\n{table(head, cells)}\n")
    speeds = speed(options.requests, options.rounds)
    lines = [
        (name, *(f"{value / 1e6:.2f}" for value in (statistics.median(v), min(v), max(v))))
        for name, v in speeds.items()
    ]
    print("Million requests per second of one core\n")
    print(table(("pattern", "median", "slowest", "fastest"), lines))
    result = {"benchmark": "memory_model", "requests": options.requests, "bandwidth": rows}
    finish(result | {"requests_per_second": {n: spread(v, 0) for n, v in speeds.items()}, "noise": noise.report()})


if __name__ == "__main__":
    main()
