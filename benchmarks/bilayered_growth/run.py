"""How far does one parameter server go? The state machine of ``BiLayered`` with 2 to 256 nodes of mixed speeds.

    python benchmarks/bilayered_growth/run.py
    python benchmarks/bilayered_growth/run.py --megabytes 60 --gigabits 10 --rounds pass,20 --shards 1,4

Nothing is trained and nothing is timed: the real state machine runs in virtual time. Modelled: a node needs
``--seconds-per-sample`` divided by its speed, speeds drawn by seed from 1, 2 and 4; every message takes
``--latency-ms``; the server takes a push and sends weights back over one link of ``--gigabits``, merges at
``--memory-gbytes`` of memory traffic a second (four times the weights), and does so for one push after the other.
Shards divide that work. Ideal time: all samples, on all nodes, never waiting. No randomness beyond the seed.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.rounds import finish, table

from convoy.strategies.bilayered.state import Rules
from convoy.strategies.bilayered.virtual import Script, simulate

CONTENDERS = {
    "even split, barrier": ("local-sgd", "even", 1),
    "SGWU, IDPA": ("sgwu", "idpa", 4),
    "AGWU, IDPA": ("agwu", "idpa", 4),
    "AGWU mended": ("agwu-mended", "idpa-mended", 4),
}


def run(name: str, nodes: int, size: str, megabytes: float, shards: int, asked: argparse.Namespace) -> dict[str, Any]:
    update, allocation, batches = CONTENDERS[name]
    draw = random.Random(asked.seed)
    speeds = [draw.choice((1.0, 2.0, 4.0)) for _ in range(nodes)]
    content = megabytes * 1e6
    serve = 2 * content / (asked.gigabits * 1e9 / 8) + 4 * content / (asked.memory_gbytes * 1e9)
    script = Script(
        tuple(asked.seconds_per_sample / speed for speed in speeds),
        send_seconds=asked.latency_ms / 1e3,
        serve_seconds=serve / shards,
    )
    rules = Rules(
        samples=asked.samples,
        batch_size=asked.batch_size,
        update=update,
        allocation=allocation,
        batches=batches,
        round=None if size == "pass" else int(size),
    )
    made = simulate(rules, script, asked.passes, verify=False)
    ideal = asked.passes * asked.samples * asked.seconds_per_sample / sum(speeds)
    lags = [merge.version - 1 - part.base for _, merge in made.merges for part in merge.parts]
    state = made.state
    worked, waited = (sum(getattr(node, key) for node in state.nodes) for key in ("worked", "waited"))
    return {
        "contender": name,
        "nodes": nodes,
        "round": size,
        "megabytes": megabytes,
        "shards": shards,
        "seconds": round(made.seconds, 3),
        "of_ideal": round(ideal / made.seconds, 4),
        "server_load": round(made.server_busy / made.seconds, 4),
        "mean_lag": round(mean(lags), 2),
        "max_lag": max(lags),
        "refused": state.stale,
        "waited": round(waited / (worked + waited), 4),
        "pushes": len(lags),
        "gigabytes": round(2 * content * (len(lags) + state.stale) / 1e9, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", default="2,4,8,16,32,64,128,256")
    parser.add_argument("--rounds", default="pass,20", help="local passes or mini-batches between pushes")
    parser.add_argument("--megabytes", default="1.1,60", help="a set of weights: ResNet-20, VGG-16")
    parser.add_argument("--shards", default="1,8")
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--passes", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seconds-per-sample", type=float, default=2e-3, help="of a node of speed 1")
    parser.add_argument("--gigabits", type=float, default=10.0)
    parser.add_argument("--memory-gbytes", type=float, default=10.0)
    parser.add_argument("--latency-ms", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    rows = []
    for megabytes in map(float, asked.megabytes.split(",")):
        for size in asked.rounds.split(","):
            for shards in map(int, asked.shards.split(",")):
                for name in CONTENDERS:
                    for nodes in map(int, asked.nodes.split(",")):
                        rows.append(run(name, nodes, size, megabytes, shards, asked))
                        last = rows[-1]
                        print(f"{name}, {nodes} nodes: {last['of_ideal']:.0%}", file=sys.stderr, flush=True)
    head = ("MB, round, shards", "contender", "nodes", "of ideal", "server load", "lag mean (max)", "refused", "waited")
    print(
        table(
            head,
            (
                (
                    f"{r['megabytes']:g}, {r['round']}, {r['shards']}",
                    r["contender"],
                    r["nodes"],
                    f"{r['of_ideal']:.1%}",
                    f"{r['server_load']:.1%}",
                    f"{r['mean_lag']} ({r['max_lag']})",
                    r["refused"],
                    f"{r['waited']:.1%}",
                )
                for r in rows
            ),
        )
    )
    finish({"benchmark": "bilayered_growth", "model": vars(asked), "rows": rows})


if __name__ == "__main__":
    main()
