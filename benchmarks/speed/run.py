"""How fast is each way to train on these cores? Ratios within a round, medians and spread over the rounds.

    python benchmarks/speed/run.py --model resnet56 --batch 32 --rounds 7 --steps 10
    python benchmarks/speed/run.py --model vgg16 --batch 128 --modes one,two,convoy,ddp,gpipe,1f1b
    python benchmarks/speed/run.py --model resnet56 --variant "half:clock=1f1b,accumulate=4" --modes one,two,convoy
    python benchmarks/speed/run.py --model resnet56 --batch 32 --busy-core --modes one,two,convoy,ddp

Modes: one (PyTorch loop, one thread), two (PyTorch's own threads, as many as there are workers; two-active and
two-passive: with OMP_WAIT_POLICY set so), limit (independent loops, one a core: what the hardware gives), sequential
(convoy's, same threads), tasks (Sequential(inner="tasks"), as many workers), convoy (Pipelined, a worker a core),
ddp (a process a core), and the schedules of torch.distributed.pipelining on two processes, each with every number of
--micro-batches: gpipe, 1f1b, interleaved-1f1b, looped-bfs, interleaved-zb, zbv, dualpipev. "peers" stands for
gpipe,1f1b; "all-peers" for all seven.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from common.contender import BusyCore, Contender
from common.rounds import Noise, Rounds, finish, ratios, run_rounds, seconds, shown, spread, table
from contenders import ConvoyPipelined, ConvoySequential, DataParallel, Limit, Loop
from synchronous import ONE_STAGE_A_PROCESS, SCHEDULES, BlockTimes, Synchronous, balanced

PLAIN = ("one", "two", "two-active", "two-passive", "limit", "sequential", "tasks", "convoy", "ddp")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet56")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--shape", default="3,32,32", help="channels, height, width of an image")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10, help="measured steps of every contender in a round")
    parser.add_argument("--warm-up", type=int, default=4, help="steps before the first round")
    parser.add_argument("--modes", default="one,two,limit,convoy,ddp,peers")
    parser.add_argument("--stages", type=int, default=2, help="stages of convoy; as many cores for two and ddp")
    parser.add_argument(
        "--variant", action="append", default=[], metavar="NAME:FIELD=VALUE,…", help="another convoy; may be repeated"
    )
    parser.add_argument("--micro-batches", default="2,4,8", help="of the peers' schedules")
    parser.add_argument("--peer-cut", type=int, help="block that begins the peers' second stage; else by measured time")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--busy-core", action="store_true", help="every round also with one core kept busy")
    options = parser.parse_args()
    known = (*PLAIN, *SCHEDULES, "peers", "all-peers")
    unknown = [mode for mode in options.modes.split(",") if mode not in known]
    if unknown:
        parser.error(f"there is no mode {unknown[0]!r}; the modes are {', '.join(known)}")
    return options


def fields(text: str) -> dict[str, Any]:
    """``clock=1f1b,accumulate=4,ppv=7+13`` as fields of ``Pipelined``; lists are joined by +, except in correction."""
    result: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        name, _, value = item.partition("=")
        if name in ("ppv", "cuts"):
            result[name] = [int(v) if v.isdigit() else v for v in value.split("+")]
        else:
            result[name] = int(value) if value.isdigit() else value
    return result


def contenders(options: argparse.Namespace) -> list[Contender]:
    shared = {
        "model": options.model,
        "batch": options.batch,
        "shape": [int(n) for n in options.shape.split(",")],
        "precision": options.precision,
        "warm_up": options.warm_up,
        "threads": options.stages,
    }
    modes = options.modes.replace("all-peers", ",".join(SCHEDULES)).replace("peers", "gpipe,1f1b").split(",")
    found: list[Contender] = []
    peers: list[tuple[str, int]] = []
    for mode in dict.fromkeys(modes):
        if mode == "one":
            found.append(Contender("one", Loop, shared | {"threads": 1}))
        elif mode == "two":
            found.append(Contender("two", Loop, shared))
        elif mode.startswith("two-"):
            policy = {"OMP_WAIT_POLICY": mode.removeprefix("two-")}
            found.append(Contender(mode, Loop, shared, environment=policy))
        elif mode == "tasks":
            found.append(Contender("tasks", ConvoySequential, shared | {"strategy": {"inner": "tasks"}}))
        elif mode == "limit":
            found.append(Contender("limit", Limit, shared | {"threads": 1}, options.stages))
        elif mode == "sequential":
            found.append(Contender("sequential", ConvoySequential, shared))
        elif mode == "convoy":
            found.append(Contender("convoy", ConvoyPipelined, shared | {"strategy": {"stages": options.stages}}))
        elif mode == "ddp":
            found.append(Contender("ddp", DataParallel, shared | {"threads": 1}, options.stages))
        else:
            peers += [(mode, int(parts)) for parts in options.micro_batches.split(",")]
    for variant in options.variant:
        name, _, text = variant.partition(":")
        chosen = fields(text)
        if not {"ppv", "cuts", "stages"} & set(chosen):
            chosen["stages"] = options.stages
        found.append(Contender(name, ConvoyPipelined, shared | {"strategy": chosen}))
    if peers:
        times = block_times(shared)
        for schedule, parts in peers:
            stages = 2 if schedule in ONE_STAGE_A_PROCESS else 4
            cuts = [options.peer_cut] if options.peer_cut and stages == 2 else balanced(times, stages)
            extra = {"schedule": schedule, "micro_batches": parts, "cuts": cuts}
            found.append(Contender(f"{schedule}/{parts}", Synchronous, shared | extra, processes=2))
    return found


def block_times(shared: dict[str, Any]) -> Sequence[float]:
    timer = Contender("block times", BlockTimes, shared)
    timer.start()
    answer = timer.measure(5)
    timer.stop()
    if answer is None:
        raise SystemExit(f"error: the model cannot be cut for the peers: {timer.error}")
    times: Sequence[float] = answer["blocks"]
    return times


def summary(found: Sequence[Contender], measured: Rounds) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for contender in found:
        row: dict[str, Any] = {"seconds": spread(seconds(measured, contender.name), 6)}
        for base in ("one", "two", "ddp", "limit"):
            if base != contender.name and (r := ratios(measured, base, contender.name)):
                row[f"times_{base}"] = spread(r, 3)
        turns = [answers[contender.name] for answers in measured if contender.name in answers]
        if turns and "busy" in turns[-1]:
            row["busy"] = turns[-1]["busy"]
        rows[contender.name] = row | {"info": dict(contender.info)} | ({"error": e} if (e := contender.error) else {})
    peers = [c.name for c in found if c.name.partition("/")[0] in SCHEDULES and rows[c.name]["seconds"]]
    for name in ("convoy", "ddp"):
        if name not in rows:
            continue
        best = min(peers, key=lambda peer: rows[peer]["seconds"]["median"], default=None)
        if best is not None:
            rows[name]["times_best_peer"] = spread(ratios(measured, best, name), 3)
            rows[name]["best_peer"] = best
        for kind in ("gpipe", "1f1b"):
            of_kind = [peer for peer in peers if peer.startswith(kind + "/")]
            if of_kind:
                best = min(of_kind, key=lambda peer: rows[peer]["seconds"]["median"])
                rows[name][f"times_{kind}"] = spread(ratios(measured, best, name), 3)
    return rows


def show(rows: dict[str, Any]) -> str:
    head = ("mode", "ms a step", "× one", "× two", "× ddp", "× limit")
    cells = []
    for name, row in rows.items():
        ms = shown(row["seconds"], 1, 1e3) if row["seconds"] else f"failed: {row.get('error', '')[:60]}"
        cells.append((name, ms, *(shown(row.get(f"times_{base}")) for base in ("one", "two", "ddp", "limit"))))
    return table(head, cells)


def _slowdown(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]], name: str) -> list[float]:
    """Disturbed over quiet, pair by pair."""
    return [d[name]["seconds"] / q[name]["seconds"] for q, d in pairs if name in q and name in d]


def main() -> None:
    options = arguments()
    noise = Noise()
    found: list[Contender] = []
    busy = BusyCore() if options.busy_core else None
    try:
        found = contenders(options)
        for contender in found:
            contender.start()
            print(f"ready: {contender.name} {dict(contender.info)}", file=sys.stderr, flush=True)
        if busy is None:
            measured, disturbed = run_rounds(found, options.rounds, options.steps), []
        else:  # quiet and disturbed in turns, so that a pair is a round
            both = run_rounds(found, 2 * options.rounds, options.steps, lambda n: busy.switch(n % 2 == 1))
            measured, disturbed = both[::2], both[1::2]
    finally:
        for contender in found:
            contender.stop()
        if busy is not None:
            busy.stop()
    rows = summary(found, measured)
    print(f"\n{options.model}, batch {options.batch}, {options.precision}\n\n{show(rows)}")
    result: dict[str, Any] = {"benchmark": "speed", "model": options.model, "batch": options.batch}
    result |= {"precision": options.precision, "rounds": options.rounds, "steps": options.steps, "modes": rows}
    if busy is not None:
        pairs = list(zip(measured, disturbed, strict=True))
        slower = {c.name: spread(_slowdown(pairs, c.name), 3) for c in found}
        rows_busy = summary(found, disturbed)
        print(f"\nwith one core kept busy by another program\n\n{show(rows_busy)}\n")
        print(table(("mode", "times slower than undisturbed"), [(name, shown(s)) for name, s in slower.items()]))
        for name, row in rows_busy.items():
            rows[name]["busy_core"] = {k: v for k, v in row.items() if k not in ("info", "error")}
            rows[name]["busy_core"]["times_slower"] = slower[name]
    finish(result | {"noise": noise.report(), "torch": torch.__version__})


if __name__ == "__main__":
    main()
