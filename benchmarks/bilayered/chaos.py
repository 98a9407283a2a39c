"""Is anything lost when nodes and the server are killed or frozen at random?

    python benchmarks/bilayered/chaos.py --runs 50 --passes 8

In every run, at moments drawn by seed, a node or the server is killed (SIGKILL) or frozen (SIGSTOP; two thirds of the
frozen ones go on some seconds later, the others never). A run is good if it ends, every sample is merged as often as it
is owed (the ledger), every version was made exactly once, and its arrivals, replayed in one thread, give the same bits.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from common.rounds import Noise, finish, table
from workload import Workload

from convoy.engines.ray.session import connect
from convoy.errors import ConvoyError
from convoy.strategies.base import Turn
from convoy.strategies.bilayered import BiLayered
from convoy.strategies.bilayered.checks import check
from convoy.strategies.bilayered.remote.step import RemoteStep
from convoy.strategies.bilayered.replay import replay

UPDATES = ("agwu-mended", "sgwu-mended", "agwu", "local-sgd")


class Chaos:
    """Does harm to the processes of a run until it is stopped. ``done``: (seconds, what, whom)."""

    def __init__(self, step: RemoteStep, seed: int, every: float) -> None:
        self.done: list[tuple[float, str, str]] = []
        self._step, self._draw, self._every = step, random.Random(seed), every
        self._stop = threading.Event()
        self._thawing: list[tuple[float, int]] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._began = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        for _, process in self._thawing:
            _signal(process, signal.SIGCONT)

    def _run(self) -> None:
        following = self._draw.expovariate(1 / self._every)
        while not self._stop.wait(0.1):
            now = time.monotonic() - self._began
            for at, process in self._thawing:
                if at <= now:
                    _signal(process, signal.SIGCONT)
            self._thawing = [(at, process) for at, process in self._thawing if at > now]
            there = sorted(name for name, about in self._step.processes.items() if about)
            if now < following or not there:
                continue
            following = now + self._draw.expovariate(1 / self._every)
            whom = self._draw.choice(there)
            process = self._step.processes.get(whom, {}).get("process")
            if process is None:
                continue
            what = self._draw.choice(("kill", "freeze", "freeze for a while", "freeze for a while"))
            _signal(process, signal.SIGKILL if what == "kill" else signal.SIGSTOP)
            if what == "freeze for a while":
                self._thawing.append((now + self._draw.uniform(1, 30), process))
            self.done.append((round(now, 1), what, whom))


def _signal(process: int, number: int) -> None:
    with suppress(OSError):
        os.kill(process, number)


def run(number: int, asked: argparse.Namespace) -> dict[str, Any]:
    seed = asked.seed + number
    work = Workload(asked.data, asked.net, asked.batch_size, seed, asked.limit)
    update = UPDATES[number % len(UPDATES)]
    strategy = BiLayered(nodes=asked.nodes, update=update, round=asked.round, engine="ray")
    events: list[Any] = []
    step, model = work.bind(strategy, asked.passes, events.append)
    began, error, same = time.monotonic(), None, None
    chaos: Chaos | None = None
    with step:
        try:
            while step.merged() < asked.passes * step.samples:
                step(Turn(), None)
                chaos = chaos or Chaos(step, seed, asked.every)
                time.sleep(asked.slow)
            step.drain()
            state = step.server_state
            assert state is not None
            check(state)
            versions = [event.data["version"] for event in events if event.name == "merge"]
            if state.accepted != asked.passes * step.samples or versions != list(range(1, state.version + 1)):
                error = f"{state.accepted} samples are merged, versions {versions}"
        except ConvoyError as raised:
            error = f"{type(raised).__name__}: {raised}"
        finally:
            if chaos is not None:
                chaos.stop()
    seconds = time.monotonic() - began
    if error is None and asked.replay:
        again, optimizer = work.parts()
        made = replay(
            again, work.loss, optimizer, strategy, work.data, events, epochs=asked.passes, settings=work.settings
        )
        pairs = zip(model.parameters(), again.parameters(), strict=True)
        same = made.first_difference is None and all(torch.equal(a, b) for a, b in pairs)
        error = None if same else "the replay differs"
    found = step.server_state
    restarts = sum(event.name == "server restarted" for event in events)
    counted = ("again", "duplicates", "dead", "stale", "not_finite")
    return {
        "run": number,
        "update": update,
        "error": error,
        "seconds": round(seconds, 1),
        "harm": chaos.done if chaos is not None else [],
        "server_restarts": restarts,
        "rejoined": sum(event.name == "join" and event.data["incarnation"] > 0 for event in events),
        "same_bits": same,
        **{name: getattr(found, name) if found is not None else None for name in counted},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no further run after so many")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--passes", type=int, default=8)
    parser.add_argument("--round", type=int, default=4, help="mini-batches between pushes")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two harms, on average")
    parser.add_argument(
        "--slow", type=float, default=0.1, help="seconds of rest after a merge, so that harm finds time"
    )
    parser.add_argument("--data", default="digits")
    parser.add_argument("--net", default="lenet5")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-replay", dest="replay", action="store_false")
    asked = parser.parse_args()
    noise, rows, began = Noise(), [], time.monotonic()
    with connect(cpus=asked.nodes + 1):
        for number in range(asked.runs):
            if time.monotonic() - began > 60 * asked.minutes:
                break
            rows.append(run(number, asked))
            last = rows[-1]
            print(
                f"run {number + 1}/{asked.runs}: {last['error'] or 'good'}, {len(last['harm'])} harms, "
                f"{last['seconds']} s",
                file=sys.stderr,
                flush=True,
            )
    good = sum(row["error"] is None for row in rows)
    harms = [what for row in rows for _, what, _ in row["harm"]]
    print(
        table(
            ("update", "runs", "good", "harms", "server restarts", "rejoined", "trained again"),
            (
                (
                    update,
                    len(own),
                    sum(row["error"] is None for row in own),
                    sum(len(row["harm"]) for row in own),
                    sum(row["server_restarts"] for row in own),
                    sum(row["rejoined"] for row in own),
                    sum(row["again"] or 0 for row in own),
                )
                for update in UPDATES
                if (own := [row for row in rows if row["update"] == update])
            ),
        )
    )
    print(f"{good} of {len(rows)} runs are good; {len(harms)} harms")
    finish({"benchmark": "bilayered chaos", "good": good, "runs": rows, "noise": noise.report()})
    if good < len(rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
