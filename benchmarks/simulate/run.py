"""What does running CONV on the host and non-CONV in memory at the same time buy, on modelled hardware?

    python benchmarks/simulate/run.py --out benchmarks/simulate/results/headline.json
    python benchmarks/simulate/run.py --networks resnet50 --batches 32 --policies queue,planned --sweeps

Speedup over serial host and units, networks x batches, for the published kind of turn policy ("queue") and ours
("planned"), each with inputs read again for every group of output channels and with inputs read once ("once"). The
defaults (hardware v100-pim4, 4 groups, marks and minimum turns to choose from, half of L2 as staging) were fixed before
the first run. The simulation draws nothing: a repetition gives the same numbers, so one run is enough; rows that the
file of --out has are not simulated again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.rounds import Noise, finish, table

from convoy.hardware.description import Hardware, load_hardware
from convoy.hardware.step import Simulation, simulate, tasks_of
from convoy.models import build

NETWORKS = ("resnet18", "resnet34", "resnet50", "resnet101", "vgg16-imagenet", "densenet121", "mobilenet-v2")
PUBLISHED_MEAN_PERCENT = 18.1


def measure(step: Any, hardware: Hardware, policy: str, **options: Any) -> dict[str, Any]:
    turns, _, once = policy.partition("/")
    began = time.process_time()
    found: Simulation = simulate(step, hardware, turns=turns, reread=once != "once", **options)
    row = {"policy": policy, "speedup": round(found.speedup, 4), "bound": round(found.bound_speedup, 4)}
    row |= {"way": round(found.way_to_bound, 3), "ms": round(1e3 * found.seconds, 3), "joules": round(found.joules, 3)}
    row |= {"speedup_where_it_helps": round(found.serial_seconds / found.seconds_where_it_helps, 4)}
    row |= {"serial_ms": round(1e3 * found.serial_seconds, 3), "serial_joules": round(found.serial_joules, 3)}
    row |= {"host_alone_ms": round(1e3 * found.host_alone_seconds, 3)}
    row |= {"host_alone_joules": round(found.host_alone_joules, 3)}
    return row | {"cpu_seconds": round(time.process_time() - began, 2)}


def sweeps(step: Any, hardware: Hardware, policies: list[str]) -> Iterator[dict[str, Any]]:
    """One thing changed at a time."""

    def units(**changes: Any) -> Hardware:
        return replace(hardware, units=replace(hardware.units, **changes))

    parts = ("park_in", "to_all_banks", "program", "to_units", "from_units", "to_single_bank", "park_out")
    parts += ("overlap", "overlap_host", "program_net")
    changed: list[tuple[str, Hardware, dict[str, Any]]] = []
    changed += [(f"groups {n}", hardware, {"groups": n}) for n in (1, 2, 4, 8, 16)]
    changed += [(f"banks per unit {n}", units(banks_per_unit=n), {}) for n in (2, 4)]
    for times in (0.25, 0.5, 2.0, 4.0):
        costs = {name: round(getattr(hardware.units, name) * times) for name in parts}
        changed.append((f"switch cost x {times:g}", units(**costs), {}))
    for mebibytes in (0.75, 1.5, 6, 12):
        host = replace(hardware.host, staging_bytes=int(mebibytes * 2**20))
        changed.append((f"staging {mebibytes:g} MiB", replace(hardware, host=host), {}))
    for efficiency in (0.15, 0.54):
        host = replace(hardware.host, efficiency=efficiency)
        changed.append((f"host efficiency {efficiency:g}", replace(hardware, host=host), {}))
    changed.append(("address map bg", replace(hardware, address_map="bg"), {}))
    for name, other, options in changed:
        for policy in policies:
            if policy.startswith("planned") and "groups" in options:
                continue
            yield {"sweep": name} | measure(step, other, policy, **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--batches", default="16,32,64,128")
    parser.add_argument("--hardware", default="v100-pim4")
    parser.add_argument("--policies", default="queue,queue/once,planned,planned/once")
    parser.add_argument("--sweeps", action="store_true", help="sweeps for the first network and batch instead")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    noise, hardware = Noise(), load_hardware(options.hardware)
    batches, policies = [int(b) for b in options.batches.split(",")], options.policies.split(",")
    rows: list[dict[str, Any]] = []
    if options.out and options.out.exists():
        rows = json.loads(options.out.read_text(encoding="utf-8"))["rows"]
    known = {(row["network"], row["batch"], row["policy"]) for row in rows}
    networks = options.networks.split(",")
    for batch in batches:
        for network in networks:
            wanted = [p for p in policies if options.sweeps or (network, batch, p) not in known]
            if not wanted:
                continue
            step = tasks_of(build(network, classes=1000, image_size=224), batch)
            found = sweeps(step, hardware, wanted) if options.sweeps else (measure(step, hardware, p) for p in wanted)
            for row in found:
                rows.append({"network": network, "batch": batch} | row)
                print(f"{network} {batch} {row}", file=sys.stderr, flush=True)
                if options.out:
                    options.out.write_text(json.dumps({"rows": rows}) + "\n", encoding="utf-8")
    rows.sort(key=lambda r: (networks.index(r["network"]), r["batch"]))
    result: dict[str, Any] = {"benchmark": "simulate", "hardware": options.hardware, "sweeps": options.sweeps}
    key = "sweep" if options.sweeps else "network"
    print(f"Speedup over serial host and units, {options.hardware}\n")
    cells: dict[tuple[str, int], dict[str, Any]] = {}
    for row in rows:
        cells.setdefault((row[key], row["batch"]), {})[row["policy"]] = row
    lines = []
    for (name, batch), by_policy in cells.items():
        one = next(iter(by_policy.values()))
        shown = [f"{by_policy[p]['speedup']:.3f}" if p in by_policy else "–" for p in policies]
        lines.append((f"{name}, {batch}", f"{one['serial_ms']:.2f}", f"{one['serial_ms'] / one['host_alone_ms']:.3f}"))
        lines[-1] += (*shown, f"{one['bound']:.3f}")
    print(table((f"{key}, batch", "serial ms", "host alone", *policies, "bound"), lines))
    if not options.sweeps:
        means = {p: mean(r["speedup"] for r in rows if r["policy"] == p) for p in policies}
        ways = {p: mean(r["way"] for r in rows if r["policy"] == p) for p in policies}
        print("\nMean gain over serial, percent: " + ", ".join(f"{p} {100 * (m - 1):.1f}" for p, m in means.items()))
        print(f"(published: {PUBLISHED_MEAN_PERCENT}; its networks, batches and thresholds are not known here)")
        print(
            "Mean share of the way to the bound, percent: " + ", ".join(f"{p} {100 * w:.0f}" for p, w in ways.items())
        )
        result |= {"mean_gain_percent": {p: round(100 * (m - 1), 2) for p, m in means.items()}}
        result |= {"mean_way_percent": {p: round(100 * w, 1) for p, w in ways.items()}}
        result |= {"published_mean_percent": PUBLISHED_MEAN_PERCENT}
    result |= {"rows": rows, "noise": noise.report()}
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    finish(result)


if __name__ == "__main__":
    main()
