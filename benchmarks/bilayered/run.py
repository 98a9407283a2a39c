"""Unequal nodes made of real work: what measured allocation gains over an even split with a barrier, and over DDP.

    python benchmarks/bilayered/run.py --data mnist:DIR --limit 12000 --busy 1
    python benchmarks/bilayered/run.py --data mnist:DIR --limit 12000 --busy 1,1 --round 50

``--cores 0,1``: the core that each node is kept on (``0,1,1``: two of three share one). ``--busy 1,1`` keeps cores busy
with endless loops beside. The system divides a core evenly, so a node should have 1 over the programs on its core;
what it really has is measured in each run, as its seconds of work a sample. From these the capacity follows, all nodes
at work all the time, and the ideal gain: capacity over the pace of the slowest, (1 + r)/2 for two nodes. A machine
whose speed drifts makes ratios of two runs noisy; shares of the capacity of the same run do not suffer from that, and
the gain at equal speed is the ratio of two such shares.

Nodes start with equal nominal speeds: what differs has to be found out. Samples per second are of the passes after
``--warm-up`` ones, the end of the run included; a round that is under way at the beginning counts in part. Node time is
taken apart by the events: work (transfer of weights included), Ray (from the driver to the node and back, without the
work), server (from a push heard to the next lease sent: merging, journal, driver, a barrier, the end). ``ddp`` meets
after every mini-batch; ``ddp, proportional`` is told the speeds. Bytes are those of weights and gradients. Rounds:
every contender in turn, ratios within a round.
"""

from __future__ import annotations

import argparse
import math
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.contender import Contender
from common.rounds import Noise, finish, shown, spread, table
from cores import busy, pin
from ddp import Ddp
from workload import Workload

from convoy.engines.ray.session import connect
from convoy.strategies.base import Turn
from convoy.strategies.bilayered import BiLayered
from convoy.strategies.bilayered.checks import check
from convoy.strategies.bilayered.remote.step import RemoteStep
from convoy.strategies.bilayered.rules.whole import whole
from convoy.training.evaluation import evaluate

CONTENDERS: dict[str, dict[str, Any]] = {
    "even, barrier": {"update": "local-sgd", "allocation": "even"},
    "sgwu, even": {"update": "sgwu", "allocation": "even"},
    "sgwu, idpa": {"update": "sgwu", "allocation": "idpa"},
    "sgwu-mended, idpa-mended": {"update": "sgwu-mended", "allocation": "idpa-mended"},
    "agwu, idpa": {"update": "agwu", "allocation": "idpa"},
    "agwu-mended, idpa": {"update": "agwu-mended", "allocation": "idpa"},
    "agwu-mended, idpa-mended": {"update": "agwu-mended", "allocation": "idpa-mended"},
}
BASE = "even, barrier"
DDP = ("ddp", "ddp, proportional")


class Clocked:
    """What the events say about the time of each node, from a moment on."""

    def __init__(self, nodes: int) -> None:
        self._nodes = nodes
        self._work: list[list[tuple[float, float]]] = [[] for _ in range(nodes)]  # (seconds, samples)
        self._rounds: list[list[tuple[float, float]]] = [[] for _ in range(nodes)]  # sent and back, driver's clock
        self.bytes = 0
        self._samples = 0

    def __call__(self, event: Any) -> None:
        if event.kind == "action":
            j = int(event.lane.removeprefix("node "))
            self._rounds[j].append((event.start, event.end))
            self._samples = event.data["samples"]
            self.bytes += event.data["bytes"]
        elif event.name == "arrival" and event.data["message"] == "push":
            self._work[event.data["node"]].append((event.data["seconds"], self._samples))

    def since(self, began: float, ended: float) -> dict[str, Any]:
        """Shares of all node time between the two moments, and each node's seconds of work a sample."""
        work = ray = server = samples = 0.0
        rates, gaps = [], []
        for done, rounds in zip(self._work, self._rounds, strict=True):
            inside = [(w, n, a, b) for (w, n), (a, b) in zip(done, rounds, strict=True) if a < ended and b > began]
            for w, n, a, b in inside:
                part = (min(b, ended) - max(a, began)) / (b - a)  # a round at the edge counts in part
                work += part * w
                samples += part * n
                ray += part * max(0.0, b - a - w)
            edges = [began, *(moment for _, _, a, b in inside for moment in (a, b)), ended]
            gaps.append([max(0.0, b - a) for a, b in zip(edges[::2], edges[1::2], strict=True)])
            server += sum(gaps[-1])
            rates.append(sum(w for w, *_ in inside) / sum(n for _, n, *_ in inside) if inside else math.nan)
        whole_time = self._nodes * (ended - began)
        return {
            "samples_per_second": samples / (ended - began),
            "of_capacity": samples / (ended - began) / sum(1 / rate for rate in rates),
            "median_gap_ms": 1e3 * median(gap for own in gaps for gap in own[1:-1] or [0.0]),
            "at_the_end": sum(own[-1] for own in gaps) / whole_time,
            "work": work / whole_time,
            "ray": ray / whole_time,
            "server": server / whole_time,
            "waited": 1 - work / whole_time,
            "seconds_per_sample": rates,
        }


def measure(name: str, work: Workload, asked: argparse.Namespace, cores: list[int]) -> dict[str, Any]:
    size = "pass" if asked.round == "pass" else int(asked.round)
    strategy = BiLayered(nodes=len(cores), round=size, engine="ray", **CONTENDERS[name])
    clocked = Clocked(len(cores))
    step, model = work.bind(strategy, asked.passes, clocked)
    began: tuple[float, int, int] | None = None
    with step, keeping(step, cores):
        while step.merged() < asked.passes * step.samples:
            step(Turn(), None)
            accepted = step.merged()
            if began is None and accepted >= asked.warm_up * step.samples:
                began = (time.perf_counter(), accepted, clocked.bytes)
        ended = time.perf_counter()
        state = step.server_state
        assert state is not None and began is not None
        check(state)
        step.drain()
        validated = evaluate(model, work.loss, work.validation, work.settings, 1)
        plan = step.plan()
    assert plan is not None
    passes = (state.accepted - began[1]) / step.samples
    return {
        **clocked.since(began[0], ended),
        "accuracy": validated.accuracy,
        "pushes": sum(node.pushes for node in state.nodes),
        "again": state.again,
        "samples": [node.samples for node in state.nodes],
        "megabytes_per_pass": (clocked.bytes - began[2]) / passes / 1e6,
        "megabytes_by_formula": bytes_per_pass(plan, asked, len(cores)) / 1e6,
    }


@contextmanager
def keeping(step: RemoteStep, cores: list[int]) -> Iterator[None]:
    """Each node on its core as soon as its process is there: they measure their speed when all are."""
    over = threading.Event()

    def watch() -> None:
        kept: set[str] = set()
        while not over.wait(0.01):
            for name, about in step.processes.items():
                if name.startswith("node ") and name not in kept:
                    pin(about["process"], cores[int(name.removeprefix("node "))])
                    kept.add(name)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def bytes_per_pass(plan: Any, asked: argparse.Namespace, nodes: int) -> float:
    """Weights to a node and back, once a round: 2·P·(rounds a pass)."""
    rounds = nodes if asked.round == "pass" else plan.samples / (int(asked.round) * asked.batch_size)
    return 2.0 * plan.bytes_per_push * rounds


def measure_ddp(name: str, number: int, asked: argparse.Namespace, cores: list[int], speeds: list[float]) -> Any:
    """``speeds``: for the batches in proportion."""
    nodes = len(cores)
    shares = speeds if "proportional" in name else [1.0] * nodes
    options = {
        "work": (asked.data, asked.net, asked.batch_size, asked.seed + number, asked.limit),
        "sizes": whole(shares, nodes * asked.batch_size),
        "cores": cores,
        "warm_up": 20,
    }
    contender = Contender(name, Ddp, options, processes=nodes)
    try:
        contender.start()
        if contender.error is None:
            info = contender.info
            passes = asked.passes - asked.warm_up
            answer = contender.measure(passes * info["samples"] // info["batch"])
    finally:
        contender.stop()
    if contender.error is not None or answer is None:
        raise SystemExit(f"{name}: {contender.error}")
    steps = info["samples"] / info["batch"]
    return {
        "samples_per_second": info["batch"] / answer["seconds"],
        "sizes": list(options["sizes"]),
        "megabytes_per_pass": answer["bytes_sent"] * steps / 1e6,
        "megabytes_by_formula": 2 * (nodes - 1) * info["bytes"] * steps / 1e6,  # a ring: 2(m−1)/m·P of each node
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--net", default="lenet5")
    parser.add_argument("--limit", type=int, help="samples of each part")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--cores", default="0,1", help="the core of each node")
    parser.add_argument("--busy", default="1", help="cores on which an endless loop runs besides; one each time named")
    parser.add_argument("--round", default="pass", help="mini-batches between pushes, or pass")
    parser.add_argument("--passes", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=4, help="passes before the clock starts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contenders", default=";".join([*CONTENDERS, *DDP]), help="names, joined by ;")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    names = [name.strip() for name in asked.contenders.split(";")]
    if unknown := [name for name in names if name not in (*CONTENDERS, *DDP)]:
        parser.error(f"there is no contender {unknown[0]!r}; they are {'; '.join([*CONTENDERS, *DDP])}")
    if not 0 < asked.warm_up < asked.passes:
        parser.error("--warm-up needs to be at least 1 and fewer than --passes")
    cores = [int(core) for core in asked.cores.split(",")]
    loops = [int(core) for core in asked.busy.split(",") if core]
    speeds = [1 / (cores + loops).count(core) for core in cores]
    noise, rounds = Noise(), []
    try:
        with busy(loops), connect(cpus=len(cores) + 1):
            for number in range(asked.rounds):
                rounds.append(one_round(names, number, asked, cores, speeds))
    except KeyboardInterrupt:  # the rounds that are through count
        if not rounds:
            raise
    report(names, rounds, speeds, asked, noise)


def one_round(
    names: list[str], number: int, asked: argparse.Namespace, cores: list[int], speeds: list[float]
) -> dict[str, Any]:
    work = Workload(asked.data, asked.net, asked.batch_size, asked.seed + number, asked.limit)
    answers: dict[str, Any] = {}
    for name in names if number % 2 == 0 else reversed(names):
        if name in DDP:
            answers[name] = measure_ddp(name, number, asked, cores, speeds)
        else:
            answers[name] = measure(name, work, asked, cores)
        rate, waited = answers[name]["samples_per_second"], answers[name].get("waited", math.nan)
        print(f"round {number + 1}, {name}: {rate:.0f} samples/s, waited {waited:.1%}", file=sys.stderr, flush=True)
    return answers


def ideal_of(seconds: list[float]) -> float:
    """All nodes at work all the time, over the pace of the slowest with equal shares."""
    return sum(1 / t for t in seconds) * max(seconds) / len(seconds)


def report(
    names: list[str], rounds: list[dict[str, Any]], speeds: list[float], asked: argparse.Namespace, noise: Noise
) -> None:
    programs = ideal_of([1 / speed for speed in speeds])
    rows: dict[str, Any] = {}
    keys = ("samples_per_second", "of_capacity", "work", "ray", "server", "waited", "median_gap_ms", "accuracy")
    for name in names:
        own = [answers[name] for answers in rounds]
        row: dict[str, Any] = {key: spread(a[key] for a in own if key in a) for key in keys}
        row |= {key: spread((a[key] for a in own), 6) for key in ("megabytes_per_pass", "megabytes_by_formula")}
        if BASE in names:
            row |= {"gain": spread(a[name]["samples_per_second"] / a[BASE]["samples_per_second"] for a in rounds)}
        if BASE in names and name not in DDP:
            ideals = [ideal_of(a["seconds_per_sample"]) for a in own]
            gains = [a[name]["of_capacity"] / a[BASE]["of_capacity"] for a in rounds]
            row |= {"ideal": spread(ideals), "gain_at_equal_speed": spread(gains)}
            row |= {"of_ideal": spread(gain / ideal for gain, ideal in zip(gains, ideals, strict=True))}
        if "ddp" in names:
            row |= {"over_ddp": spread(a[name]["samples_per_second"] / a["ddp"]["samples_per_second"] for a in rounds)}
        rows[name] = row | {"runs": own}
    print(f"ideal gain by programs on a core: {programs:.2f}\n")
    head = ("contender", "samples/s", "gain", "over DDP", "of capacity, %", "gain at equal speed", "ideal",
            "of the ideal, %", "waited, %", "Ray, %", "server, %", "MB a pass", "formula", "accuracy, %")  # fmt: skip
    print(
        table(
            head,
            (
                (
                    name,
                    shown(row["samples_per_second"], 0),
                    shown(row.get("gain")),
                    shown(row.get("over_ddp")),
                    shown(row["of_capacity"], 0, 100),
                    shown(row.get("gain_at_equal_speed")),
                    shown(row.get("ideal")),
                    shown(row.get("of_ideal"), 0, 100),
                    shown(row["waited"], 1, 100),
                    shown(row["ray"], 1, 100),
                    shown(row["server"], 1, 100),
                    f"{row['megabytes_per_pass']['median']:.2f}",
                    f"{row['megabytes_by_formula']['median']:.2f}",
                    shown(row["accuracy"], 1, 100),
                )
                for name, row in rows.items()
            ),
        )
    )
    options = {name: value for name, value in vars(asked).items() if name != "data"}
    options |= {"data": asked.data.partition(":")[0]}
    finish(
        {
            "benchmark": "bilayered",
            "asked": options,
            "ideal_by_programs": programs,
            "rows": rows,
            "noise": noise.report(),
        }
    )


if __name__ == "__main__":
    main()
